"""Where and how products are computed: device, precision, threads, processes, graphs, memory."""

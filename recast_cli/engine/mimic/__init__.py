"""Source and layout become a base: decompose, compress, heal."""

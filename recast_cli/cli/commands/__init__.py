"""One file a command: options in, calls of the engine, a view out."""

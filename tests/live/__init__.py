"""Live tests: real processes, real signals, real sockets."""

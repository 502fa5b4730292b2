"""What executes a graph: the protocol, and one module for each library."""

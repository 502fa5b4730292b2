"""Backends, which execute a graph: the protocol, and one module for each library."""

"""Task heads: eager modules, their weights, and their part of the graph."""

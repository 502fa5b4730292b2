"""How far the libraries that checkpoints come from are from the official code."""

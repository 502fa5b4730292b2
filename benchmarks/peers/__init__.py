"""The candidates of the benchmark: dinov2rt, and the libraries that users would run instead."""

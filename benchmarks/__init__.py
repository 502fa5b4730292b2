"""Latency, throughput and the peers beside them."""

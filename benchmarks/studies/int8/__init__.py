"""Studies of int8 on a CPU."""

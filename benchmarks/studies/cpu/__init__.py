"""Studies of backends on the CPU."""

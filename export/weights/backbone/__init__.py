"""The backbone in a checkpoint: found by names, and brought into the official form."""

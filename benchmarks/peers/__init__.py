"""What is timed: dinov2rt, and what a user would otherwise run."""

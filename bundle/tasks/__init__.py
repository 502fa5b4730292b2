"""What heads answer, as far as all rooms share it: classes, resampling, comparison."""

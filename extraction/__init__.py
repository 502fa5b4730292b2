"""Collections of images to feature datasets, on one machine or on Ray."""

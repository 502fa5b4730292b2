"""Collections of images to answers of heads."""

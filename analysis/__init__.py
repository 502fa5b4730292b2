"""What is done with features: search, classification, pictures."""

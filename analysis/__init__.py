"""Works on extracted features: search, classification and pictures."""

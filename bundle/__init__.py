"""The bundle format, which all other packages share: manifest, golden outputs and limits."""

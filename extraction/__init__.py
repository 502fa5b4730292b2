"""Extracts feature datasets from collections of images, on one machine or on Ray."""

"""Computes the predictions of heads for collections of images."""

"""Runs all measurements on a GPU machine with one command."""

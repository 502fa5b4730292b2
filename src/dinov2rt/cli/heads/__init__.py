"""Verbs about heads."""

"""Watched folder trees: what arrives in them, and when it is complete."""

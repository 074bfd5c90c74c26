"""Pair recipes."""

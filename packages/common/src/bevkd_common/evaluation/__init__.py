"""Metrics of the data sets."""

"""Samples, batches, and the readers and writers of the data sets."""

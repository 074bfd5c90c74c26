"""Configuration of each data set and of its parts."""

"""Configuration of each detector and of its parts."""

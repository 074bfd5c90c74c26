"""Recipes: one YAML file an experiment."""

"""Pair recipes: data, teacher, student and their trainings, as YAML files."""

"""Reading recipes: YAML with places, overrides, and messages about what is wrong."""

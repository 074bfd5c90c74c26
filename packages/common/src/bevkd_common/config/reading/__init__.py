"""Reading recipes: YAML with places, overrides, composition and error messages."""

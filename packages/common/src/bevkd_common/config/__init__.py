"""Everything a YAML file can say, as pydantic models; imports no torch."""

"""A YAML file becomes runs, and runs a table."""

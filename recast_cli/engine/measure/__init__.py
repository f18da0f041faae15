"""Numbers about a model, a task or a base."""

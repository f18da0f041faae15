"""What is learned for a task, and its files."""

"""What results look like for people and as JSON; a view never calls a command."""

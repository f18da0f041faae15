"""Everything that the commands do, as a library: it knows nothing of Typer and Rich."""

"""The one place where the version stands; pyproject.toml reads it, and whatever records it imports it from here."""

__version__ = "0.1.0"

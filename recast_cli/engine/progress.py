"""What long work calls as it goes on."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Takes how much is done, how much there is in all, and a few words for what."""

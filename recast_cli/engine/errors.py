"""What a user's mistake raises: `RecastError`, and the kinds of it that somebody may want to catch.

Texts speak of parameters, as who calls the library writes them; the command line puts its flags in their place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

NAMED = re.compile("\0(\\w+)(?:=([^\0]*))?\0")
"""A parameter in a text, with its value: marked, as the same word may stand there for something else."""


def option(name: str, value: object = None) -> str:
    """A parameter in the text of an error: `image_size`, or with a value `data=DIR`; see `RecastError.spelt`."""
    return f"\0{name}\0" if value is None else f"\0{name}={value}\0"


def in_python(name: str, value: str | None) -> str:
    """A parameter as a call has it."""
    return name if value is None else f"{name}={value}"


class RecastError(Exception):
    """Something the user can put right; the message says what was wrong, where, and what to do next.

    Args:
        what: What was wrong, with the value that was wrong in it; parameters in it by `option`.
        hint: What to do next, a full sentence.
    """

    def __init__(self, what: str, hint: str = "") -> None:  # `args` stay as they were given: so it can be pickled
        self.marked = " ".join(str(what).split()), " ".join(str(hint).split())
        self.what, self.hint = self.spelt()

    def spelt(self, spell: Callable[[str, str | None], str] = in_python) -> tuple[str, str]:
        """`what` and `hint`, each parameter as `spell` writes its name and value (None: it stands without one)."""
        what, hint = (NAMED.sub(lambda found: spell(found[1], found[2]), text) for text in self.marked)
        return what, hint

    def told(self, spell: Callable[[str, str | None], str] = in_python) -> str:
        """The message."""
        return ". ".join(filter(None, self.spelt(spell)))

    __str__ = told

    def at(self, place: str) -> RecastError:
        """The same error, with `place` before its text."""
        RecastError.__init__(self, f"{place}: {self.marked[0]}", self.marked[1])
        return self

    def renamed(self, old: str, new: str) -> RecastError:
        """The same error, for callers to whom a parameter is known by another name."""
        RecastError.__init__(self, *self.spelt(lambda name, value: option(new if name == old else name, value)))
        return self


class OptionError(RecastError):
    """A parameter has a value that it cannot have, or does not go with the others that were given.

    Attributes:
        option: Its name, with which the text begins.
    """

    def __init__(self, name: str, what: str, hint: str = "") -> None:
        super().__init__(f"{option(name)} {what}", hint)
        self.option = name

    def renamed(self, old: str, new: str) -> RecastError:
        self.option = new if self.option == old else self.option
        return super().renamed(old, new)


class MissingFile(RecastError):
    """A file or folder that was named, or that another file names, is not there."""


class DamagedFile(RecastError):
    """A file is truncated, or what is in it is not what its kind of file holds."""


class UnknownArchitecture(RecastError):
    """A network is wanted of tensors alone: of a weight file whose architecture was not named, or of its base."""

    def __init__(self, who: object, hint: str, so: str = "it cannot run") -> None:
        super().__init__(f"{who} has no known architecture, so {so}", hint)


def suggest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """`Did you mean 'x'?` for the known word closest to `word`; else `otherwise`, or the known words (at most 12)."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    if otherwise:
        return otherwise
    listed = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"Known: {listed}." if known else ""


def check_seed(name: str, value: int) -> None:
    """Raise OptionError for a seed that a generator does not take, or not with an epoch's number beside it."""
    if not 0 <= value < 2**32:
        raise OptionError(name, f"{value} is out of range", f"Give a whole number from 0 to {2**32 - 1}.")


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first sentence of an exception's message, at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.split(". ")[0].rstrip(".")
    return text if len(text) <= limit else text[: limit - 1] + "…"

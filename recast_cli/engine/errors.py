"""The one exception a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecastError(Exception):
    """Something the user can put right; the message says what was wrong, where, and what to do next.

    Args:
        what: What was wrong, with the value that was wrong in it.
        hint: What to do next, a full sentence.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = " ".join(str(what).split())
        self.hint = " ".join(str(hint).split())
        super().__init__(f"{self.what}. {self.hint}" if self.hint else self.what)


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


def check_seed(option: str, value: int) -> None:
    """Raise RecastError for a seed that a generator does not take, or not with an epoch's number beside it."""
    if not 0 <= value < 2**32:
        raise RecastError(f"--{option} {value} is out of range", f"Give a whole number from 0 to {2**32 - 1}.")


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first sentence of an exception's message, at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.split(". ")[0].rstrip(".")
    return text if len(text) <= limit else text[: limit - 1] + "…"

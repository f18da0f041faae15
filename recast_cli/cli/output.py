"""One output object: results on stdout, for people or as JSON; messages and progress on stderr."""

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from recast_cli.cli.flags import with_flags
from recast_cli.engine.progress import Progress

GRACE = 5
"""Seconds that a process beside the first waits after an error, for the first to tell it and leave."""


class Output:
    """Where a command's words go.

    Args:
        as_json: One JSON object on stdout and nothing else there.
        quiet: No messages and no progress; results, warnings and errors stay.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet or not leads()
        self.stdout = plain_or_rich(sys.stdout)
        self.stderr = plain_or_rich(sys.stderr)

    def note(self, text: str) -> None:
        """A message for a person who watches."""
        if not self.quiet:
            self.say(Text(text))

    def explain(self, show: Callable[[Console], None]) -> None:
        """What `show` prints, for a person who watches."""
        if not self.quiet:
            with self.stderr.capture() as shown:
                show(self.stderr)
            sys.stderr.writelines(line.rstrip() + "\n" for line in shown.get().splitlines())

    def warn(self, message: Exception | str) -> None:
        """A warning; `--quiet` keeps it."""
        if leads():
            self.say(Text.assemble(("warning: ", "yellow"), with_flags(message)))

    def error(self, message: Exception | str) -> None:
        """The one line of an error, never wrapped; a process beside the first tells what the first has not."""
        text = with_flags(message)
        if not leads():
            # torchrun ends all processes when one leaves: this one here, where the first has the same to tell
            time.sleep(GRACE)
            text = f"process {os.environ['RANK']}: {text}"
        self.stderr.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)

    def say(self, text: Text) -> None:
        """A line on stderr, wrapped for a terminal; in a log it stays one line."""
        self.stderr.print(text, soft_wrap=not self.stderr.is_terminal)

    def result(self, value: dict[str, Any], show: Callable[[Console], None]) -> None:
        """The result: `value` as JSON, or what `show` prints for people. Undefined numbers must be None."""
        if not leads():
            return
        try:
            if self.as_json:
                sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
            else:
                with self.stdout.capture() as shown:
                    show(self.stdout)
                sys.stdout.writelines(line.rstrip() + "\n" for line in shown.get().splitlines())
            sys.stdout.flush()
        except BrokenPipeError:
            leave_pipe()

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """A progress bar on stderr where that is a terminal, as a function of done, total and a few words."""
        if self.quiet or not self.stderr.is_terminal:
            yield None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=self.stderr, transient=True) as bar:
            task, phase = bar.add_task("", total=None), ("", 0)

            def report(done: int, total: int, text: str) -> None:
                nonlocal phase
                if (text.split(" ")[0], total) != phase:  # another kind of work: its own start, its own ETA
                    phase = (text.split(" ")[0], total)
                    bar.reset(task)
                bar.update(task, completed=done, total=total, description=text)

            yield report


def leads() -> bool:
    """Whether this process talks: it is alone, or the first of those that torchrun started."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def plain_or_rich(stream: IO[str]) -> Console:
    """A console without any escape code where the stream is no terminal or NO_COLOR is set."""
    terminal = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = None if stream.isatty() or os.environ.get("COLUMNS") else 100
    return Console(
        file=stream,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        width=width,
        highlight=False,
        emoji=False,
        markup=False,
    )


def leave_pipe() -> int:
    """Take it that the reader of stdout has seen enough: what is still to be written there goes nowhere; status 0."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def show_facts(console: Console, rows: list[tuple[str, str]]) -> None:
    """Two columns without lines: a name, and what it is, wrapped between words: a path stays whole to be copied."""
    indent = max((len(name) for name, _ in rows), default=0) + 2
    for name, value in rows:
        width = max(console.width - indent, 1)
        lines = textwrap.wrap(value, width, break_long_words=False, break_on_hyphens=False) or [""]
        for first, line in zip([name, *[""] * len(lines)], lines, strict=False):
            console.print(Text.assemble((first.ljust(indent), "dim"), line), soft_wrap=True)


def columns(*names: str) -> Table:
    """An empty table; the first column is text, the others are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    return table


def left_out(paths: list[str]) -> str:
    """How many images could not be read, and the names of the first five."""
    count = f"{len(paths)} image{'s' if len(paths) > 1 else ''}"
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return f"left out {count} that could not be read: {', '.join(paths[:5])}{more}"

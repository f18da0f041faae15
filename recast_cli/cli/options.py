"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from recast_cli.engine.errors import RecastError
from recast_cli.engine.units import parse_bytes


def parse_size(text: str | int) -> int:
    """Bytes that a size for people means. Raises RecastError for anything else."""
    found = parse_bytes(text)
    if found is None:
        raise RecastError(f"--cache-size {text} is not a size", "Give e.g. 10GB or 500MB, or 0 for no cache.")
    return found


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages and no progress bars.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (also: RECAST_DEBUG=1).")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 …  [default: cuda where there is one]")
]
BaseFile = Annotated[
    Path | None,
    typer.Option(
        "--base", metavar="FILE", help="The base.  [default: recast.yaml's, else the one base in this folder]"
    ),
]
OnBadImage = Annotated[
    str | None,
    typer.Option("--on-bad-image", metavar="skip|fail", help="What to do about unreadable images.  [default: skip]"),
]
CacheSize = Annotated[
    int | None,
    typer.Option(
        "--cache-size",
        metavar="SIZE",
        parser=parse_size,
        help="Disk space for decoded images, e.g. 500MB; 0 for no cache.  [default: 10GB]",
    ),
]

"""Run commands in the current folder and draw them, with what they print, as one SVG that loads nothing else.

cd recast-demo
python PATH/docs/images/record.py session.svg 'recast mimic vit -o base.safetensors' 'recast eval --all'
"""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

WIDTH = 84


def run(command: str) -> str:
    """What a command prints in a terminal of WIDTH columns: messages (stderr, without progress bars), then results."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    with subprocess.Popen(command, shell=True, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        results = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not piece:
                break
            results += piece
        messages = process.stderr.read() if process.stderr else b""
    os.close(ours)
    return (messages + results).decode().replace("\r\n", "\n")


def draw(commands: list[str], path: Path) -> None:
    """Write the session to an SVG file."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for place, command in enumerate(commands):
        if place:
            console.print()
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        console.print(Text.from_ansi(run(command).rstrip("\n")))
    # the font that Rich names lies on another server; any font of equal widths will do
    template = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    template = template.replace("Fira Code,", "Menlo, Consolas, DejaVu Sans Mono,")
    path.write_text(console.export_svg(title="recast", code_format=template, unique_id="session"), encoding="utf-8")


if __name__ == "__main__":
    draw(sys.argv[2:], Path(sys.argv[1]))

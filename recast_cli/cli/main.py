"""The `recast` command: its subcommands, and the one place where exceptions become exit codes.

0 done, 1 a threshold missed, 2 wrong input or usage, 3 a machine fault or a bug, 130 interrupted.
"""

import io
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from recast_cli.cli.registry import SUMMARIES, Commands
from recast_cli.engine.errors import RecastError
from recast_cli.version import __version__


class Recast(TyperGroup):
    """The command group; turns every exception into one line on stderr and an exit code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            code = super().main(arguments, *rest, **{**options, "standalone_mode": False})
        except Exception as error:
            code = report(error, debug="--debug" in arguments or bool(os.environ.get("RECAST_DEBUG")))
        except SystemExit as stop:
            from recast_cli.cli.output import leave_pipe

            # Typer exits with 1 where the reader of --help has seen enough, and 1 means a missed threshold here
            code = stop.code if not isinstance(stop.__context__, BrokenPipeError) else leave_pipe()
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        import warnings

        try:
            with warnings.catch_warnings():
                warnings.showwarning = partial(show_warning, warnings.showwarning)
                return super().invoke(ctx)
        except KeyboardInterrupt:
            return interrupted()  # Typer would leave without a word


def show_warning(otherwise: Any, message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
    """Print a warning of the engine as a line for the user; any other as Python does."""
    from recast_cli.cli.output import Output

    if category.__module__.startswith("recast_cli."):
        Output().warn(message)
    else:
        otherwise(message, category, *place, **more)


def report(error: Exception, debug: bool) -> int:
    """Print one line for `error` (with `debug` its traceback first) and return the exit code."""
    from recast_cli.cli.output import Output

    output = Output()
    if isinstance(error, (typer.Abort, EOFError)):
        return interrupted()
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, RecastError):
        output.error(error)
        return 2
    if hasattr(error, "format_message"):  # a usage error, whose class has another home in every version of Typer
        command = getattr(getattr(error, "ctx", None), "command_path", "recast")
        text = error.format_message()
        output.error(f"{text if text.endswith(('.', '?')) else text + '.'} See `{command} --help`.")
        return 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text = "Out of memory. Take a smaller --batch-size or --image-size, or a machine with more."
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or error}. Mend it and give the same command again."
    else:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        text = f"{what}. This is a bug of recast; --debug shows where it happened."
    output.error(text)
    return 3


GOES_ON = {"adapt", "compare", "--heal"}
"""Commands that keep what they have done when they are stopped, and what makes one such a command."""


def interrupted() -> int:
    """The line and the exit code of an interrupt."""
    from recast_cli.cli.output import Output, leads

    if leads():  # the others have heard it as well
        kept = "What was finished is kept; the same command goes on from there."
        words = {word.partition("=")[0] for word in sys.argv}
        Output().error(f"Interrupted. {kept if GOES_ON & words else 'Nothing is half-written.'}")
    return 130


app = typer.Typer(
    cls=Recast,
    name="recast",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def version(value: bool) -> None:
    """`recast --version`."""
    if value:
        typer.echo(f"recast-cli {__version__}")
        raise typer.Exit


@app.callback()
def recast(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Rewrite a pretrained vision model as mixtures of shared templates, then teach it
    each new task in fewer than 50 floats.

    \b
        recast mimic vit_small_patch16_224 -o base.safetensors
        recast adapt --task flowers
        recast eval --task flowers --fail-under 0.9
        recast inspect base.safetensors

    New here? `recast demo` shows all of it, offline, in two minutes.
    """


def main() -> None:
    """Entry point of the console script."""
    # a stream that was closed (`>&-`) is None here; what is written there goes nowhere
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: a file name in another encoding is shown
    app()

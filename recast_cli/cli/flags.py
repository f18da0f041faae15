"""The parameters that errors and warnings of the engine speak of, as flags of the command line."""

from recast_cli.engine.errors import RecastError

FLAGS = {"compiled": "compile", "group": "group-size", "name": "task", "patterns": "modules"}
"""Parameter -> its flag, where that is called otherwise."""


def flag(name: str, value: str | None) -> str:
    """A parameter as the command line has it: `--image-size`, `--data DIR`, `--restart`."""
    flag = "--" + FLAGS.get(name, name).replace("_", "-")
    return flag if value in (None, "True") else f"{flag} {value}"


def with_flags(message: Exception | str) -> str:
    """The text of an error or a warning, its parameters spelt as flags."""
    return message.told(flag) if isinstance(message, RecastError) else str(message)

"""Write docs/reference/commands.md from the command line and docs/reference/python-api.md from the docstrings.

python tests/generate_docs.py

Typer can print such a page itself (`typer recast_cli.cli.main utils docs`), but cuts sentences, and what it calls a
number changes from version to version.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

import recast_cli

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
WIDTH = 120
LONGEST = 100
"""Of a method with its types on one line."""
FIELD = re.compile(r"(\w+): (.+)")
SECTIONS = {"Args": "Arguments", "Attributes": "Attributes", "Returns": "Returns", "Raises": "Raises"}


def commands_page() -> str:
    """Every command with its examples and options."""
    from recast_cli.cli.main import app

    group = typer.main.get_command(app)
    commands = group.commands.items()
    pages = [f"## `recast {name}`\n\n{one_command(name, command)}" for name, command in commands]
    index = [f"| [`recast {name}`](#recast-{name}) | {first_line(command.help)} |" for name, command in commands]
    return join(
        "# Commands",
        fill(
            "Made of the tool's own help by `python tests/generate_docs.py`. [JSON keys and exit codes](json.md) are "
            "the same for all commands. Every command has `--help`, and `recast --version` prints the version."
        ),
        "\n".join(["| command | what it does |", "|---|---|", *index]),
        *pages,
    )


def one_command(name: str, command: Any) -> str:
    """Help, examples and options of a command."""
    text, _, examples = (command.help or "").partition("\b")
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join(["recast", name, "[OPTIONS]", *(str(each.metavar) for each in arguments)])
    return join(
        *paragraphs(text),
        f"```sh\n{textwrap.dedent(examples.strip(chr(10))).rstrip()}\n```" if examples.strip() else "",
        f"Usage: `{usage}`",
        "\n".join(
            [
                *(bullet(f"`{each.metavar}`", each.help or "", required=each.required) for each in arguments),
                *(one_option(each, hints.get(each.name)) for each in options),
            ]
        ),
    )


def one_option(option: Any, hint: Any) -> str:
    """An option as a line of a list: its names, its value, what it does, its default."""
    names = " / ".join([", ".join(sorted(option.opts, key=len)), *option.secondary_opts])
    kinds = {int: "N", float: "X"}
    given = [each for each in (hint, *typing.get_args(hint)) if each in kinds]
    value = "" if option.is_flag else f" {option.metavar or kinds[given[0]]}"
    default = "" if option.is_flag or option.default is None else f"  [default: {option.default}]"
    return bullet(f"`{names}{value}`", f"{option.help or ''}{default}", required=option.required)


def bullet(name: str, text: str, required: bool = False) -> str:
    """`* name: text`, wrapped. A default that the text holds in brackets becomes a sentence."""
    text = escape(re.sub(r"\s*\[default: (.+)\]", r" Default: \1.", text.strip()))
    return fill(f"* {name}: {text}{' Required.' if required else ''}", "  ")


def python_page() -> str:
    """Every public name with its signature and docstring."""
    names = [name for names in recast_cli.PUBLIC.values() for name in names]
    index = [f"| [`{name}`](#{name.lower()}) | {first_line(inspect.getdoc(public(name)))} |" for name in names]
    return join(
        "# Python API",
        fill(
            "Made of the docstrings by `python tests/generate_docs.py`. All names are there after `import recast_cli "
            "as recast`, and a module is imported when one of its names is first used. "
            "[How to use it](../how-to/from-python.md) has whole examples."
        ),
        "\n".join(["| name | what it is |", "|---|---|", *index]),
        *(f"## `{name}`\n\n{one_name(name, public(name))}" for name in names),
    )


def public(name: str) -> Any:
    """The object of a public name."""
    return getattr(recast_cli, name)


def one_name(name: str, thing: Any) -> str:
    """Signature, docstring, and for a class its public methods."""
    if not inspect.isclass(thing):
        return join(f"```python\n{signature(name, thing)}\n```", docstring(thing))
    bases = [each.__name__ for each in thing.__bases__ if each is not object]
    head = f"```python\n{signature(name, thing)}\n```"
    kind = f"A kind of {' and '.join(f'`{each}`' for each in bases)}." if issubclass(thing, Exception) else ""
    parents = [each for each in thing.__mro__[1:] if dataclasses.is_dataclass(each)]
    found = {name: line for each in (*parents, thing) for name, line in members(each).items()}
    inherited = [docstring(each).partition("\n\n")[2].replace("**Attributes**\n\n", "") for each in parents]
    return join(
        head,
        docstring(thing),
        *inherited,
        kind,
        "\n".join(["**Methods and properties**\n", *found.values()]) if found else "",
    )


def members(thing: type) -> dict[str, str]:
    """The methods and properties that a class itself defines and documents, a line each."""
    lines = {}
    for name, member in vars(thing).items():
        target = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        computed = isinstance(target, (property, functools.cached_property))
        text = inspect.getdoc(target) if computed or inspect.isfunction(target) else None
        if text and not name.startswith("_"):
            shown = name if computed else f"{name}({arguments(target)})"
            if len(shown) > LONGEST:
                shown = f"{name}({', '.join(inspect.signature(target).parameters)})".replace("(self, ", "(")
            lines[name] = bullet(f"`.{shown}`", " ".join(text.partition("\n\n")[0].split()))
    return lines


def signature(name: str, thing: Any) -> str:
    """`name(a: int, b: str = 'x') -> C`, one argument a line where it is long."""
    if inspect.isclass(thing) and issubclass(thing, Exception) and "__init__" not in vars(thing):
        return f"class {name}"
    back = inspect.signature(thing).return_annotation
    result = "" if inspect.isclass(thing) or back is inspect.Signature.empty else f" -> {annotation(back)}"
    short = f"{name}({arguments(thing)}){result}"
    if len(short) <= WIDTH:
        return short
    inside = "".join(f"    {each},\n" for each in argument_list(thing))
    return f"{name}(\n{inside}){result}"


def arguments(thing: Callable[..., Any]) -> str:
    """The arguments on one line, without self."""
    return ", ".join(argument_list(thing))


def argument_list(thing: Callable[..., Any]) -> list[str]:
    """The arguments, each as it is written in the source."""
    found, starred = [], False
    for name, each in inspect.signature(thing).parameters.items():
        if name in ("self", "cls"):
            continue
        if each.kind is each.KEYWORD_ONLY and not starred:
            found.append("*")
            starred = True
        prefix = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        hint = "" if each.annotation is each.empty else f": {annotation(each.annotation)}"
        found.append(f"{prefix}{name}{hint}{default(each.default, bool(hint))}")
    return found


def annotation(hint: Any) -> str:
    """A type as the source spells it: names of classes without their modules."""
    text = hint.strip("'\"") if isinstance(hint, str) else inspect.formatannotation(hint)
    text = text.replace("torch.nn.modules.module", "nn")
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", lambda found: "nn." if found[0] == "nn." else "", text)


def default(value: Any, hinted: bool) -> str:
    """` = value`; a function by its name, and what a dataclass makes anew by three dots."""
    if value is inspect.Parameter.empty:
        return ""
    shown = value.__name__ if inspect.isfunction(value) else repr(value)
    shown = "..." if shown.startswith("<") or isinstance(value, dataclasses.Field) else shown
    return f" = {shown}" if hinted else f"={shown}"


def docstring(thing: Any) -> str:
    """A docstring as Markdown: its sections as lists, its examples as code."""
    text = inspect.getdoc(thing) or ""
    if text.startswith(f"{thing.__name__}("):  # what a dataclass without a docstring gets
        return ""
    parts, section = [], ""
    for block in re.split(r"\n\n+", text):
        head, _, rest = block.partition("\n")
        if head.rstrip(":") in SECTIONS and head.endswith(":"):
            section = SECTIONS[head.rstrip(":")]
            parts.append(join(f"**{section}**", fields(textwrap.dedent(rest))))
        elif head in ("Example:", "Examples:"):
            parts.append(join("**Example**", f"```pycon\n{textwrap.dedent(rest).rstrip()}\n```"))
        elif block.startswith(">>>") or block.startswith("    "):
            kind = "pycon" if ">>>" in block else "python"
            parts.append(f"```{kind}\n{textwrap.dedent(block).rstrip()}\n```")
        else:
            parts.append(prose(block))
    return merge_code(join(*parts))


def fields(text: str) -> str:
    """The lines of a section as a list: `name: what`, or sentences."""
    items = [" ".join(item.split()) for item in re.split(r"\n(?! )", text.strip())]
    found = [FIELD.fullmatch(item) for item in items]
    if not all(found):
        return prose("\n".join(items))
    return "\n".join(bullet(f"`{each[1]}`", each[2]) for each in found if each)


def prose(block: str) -> str:
    """A paragraph, wrapped anew; a list stays one."""
    if re.match(r"[*-] ", block):
        items = [" ".join(item.split()) for item in re.split(r"\n(?=[*-] )", block)]
        return "\n".join(fill(f"* {escape(item[2:])}", "  ") for item in items)
    return fill(escape(" ".join(block.split())))


def merge_code(text: str) -> str:
    """Blocks of code that only an empty line divides are one block."""
    return re.sub(r"\n```\n\n```(?:pycon|python)\n", "\n\n", text)


def first_line(text: str | None) -> str:
    """The first sentence of a help or docstring."""
    head = " ".join((text or "").partition("\n\n")[0].split())
    return escape(re.split(r"(?<=[a-z)`])\. ", head)[0].rstrip("."))


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a help text, each wrapped."""
    return [prose(block) for block in re.split(r"\n\s*\n", text.strip()) if block.strip()]


def escape(text: str) -> str:
    """Text with nothing in it that Markdown would take for emphasis or HTML; code within backticks stays as it is."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(piece if place % 2 else re.sub(r"([*<])", r"\\\1", piece) for place, piece in enumerate(pieces))


def fill(text: str, hang: str = "") -> str:
    """Text wrapped at WIDTH; lines after the first begin with `hang`. Code within backticks stays on one line."""
    spans: list[str] = []

    def keep(match: re.Match[str]) -> str:
        spans.append(match[0])
        return match[0].replace(" ", "\0")

    kept = re.sub(r"`[^`]+`", keep, text)
    lines = textwrap.wrap(kept, WIDTH, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def join(*parts: str) -> str:
    """Paragraphs with an empty line between two."""
    return "\n\n".join(part.strip("\n") for part in parts if part.strip())


PAGES: dict[str, Callable[[], str]] = {"commands.md": commands_page, "python-api.md": python_page}
"""File in docs/reference/ -> what makes its text."""


def page(name: str) -> str:
    """The text of a generated page."""
    return PAGES[name]() + "\n"


if __name__ == "__main__":
    for name in PAGES:
        (REFERENCE / name).write_text(page(name), encoding="utf-8")
        print(f"wrote {REFERENCE / name}")

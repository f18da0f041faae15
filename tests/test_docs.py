"""The documents say what the code does: commands, options, links, the public API, the README's commands."""

import re
from pathlib import Path

import pytest
import typer

import recast_cli
from recast_cli.cli.main import app

ROOT = Path(__file__).parent.parent
COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_names_every_option_of_every_command(name):
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = text.split(f"## `recast {name}`")[1].split("\n## ")[0]
    for parameter in COMMANDS[name].params:
        for option in parameter.opts:
            if option.startswith("--"):
                assert f"{option}" in section, f"regenerate docs/commands.md: {option} of {name} is not in it"


def test_relative_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_public_name_can_be_imported():
    for name in recast_cli.__all__:
        assert getattr(recast_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        recast_cli.nothing  # noqa: B018


def test_the_readme_has_the_two_commands_that_ci_and_newcomers_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for marker, last in (("demo", "recast demo"), ("test", "pytest -q -n 2 --dist loadfile")):
        block = re.search(rf"<!-- {marker} -->\n```sh\n(.+)\n```", text)
        assert block is not None
        assert block[1].startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert block[1].endswith(last)


def test_every_file_of_the_engine_is_on_the_map():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for file in (ROOT / "recast_cli" / "engine").glob("*.py"):
        assert file.name == "__init__.py" or file.name in text, file.name

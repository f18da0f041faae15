"""YAML files that people write: read, and checked key by key, with the nearest known key where one is wrong."""

from pathlib import Path
from typing import Any

import yaml

from recast_cli.engine.errors import MissingFile, RecastError, suggest

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "keys", list: "a list"}
"""What a value of a type is called."""


class Loader(yaml.SafeLoader):
    """Of YAML whose keys are there once; the second one would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises a YAMLError where a key comes again."""
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, hint: str) -> dict[Any, Any]:
    """The mapping that a file holds; an empty file is an empty mapping.

    Where it holds something else, `hint` says what to write in it.

    Raises:
        RecastError: It is missing, cannot be read, is no valid YAML, or holds no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise MissingFile(f"{path} does not exist", "Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecastError(f"{path} cannot be read: {error}", "Check the file.") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not valid YAML"
        place = f" line {mark.line + 1}" if mark else ""
        advice = "Indent with spaces, not tabs." if "\\t" in problem else "Correct it."
        raise RecastError(f"{path}{place}: {problem}", advice) from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise RecastError(f"{path} holds {typename(content)}, and keys are wanted", hint)
    return content


def with_underscores(values: dict[Any, Any]) -> dict[str, Any]:
    """Keys as Python has them: `image-size` is `image_size`."""
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def check_keys(path: Path, where: str, values: Any, known: dict[str, tuple[type, ...]]) -> dict[str, Any]:
    """`values` without None, by keys as Python has them. Raises RecastError for unknown keys and wrong types."""
    if not isinstance(values, dict):
        raise RecastError(f"{path}: {where} is {typename(values)}, and keys are wanted", f"Known: {', '.join(known)}.")
    if len(with_underscores(values)) < len(values):
        raise RecastError(f"{path}: {where or 'it'} has a key twice, once with - and once with _", "Leave one out.")
    found = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        kinds = known.get(str(key).replace("-", "_"))
        if kinds is None:
            raise RecastError(f"{path}: unknown key '{name}'", suggest(str(key), known))
        if kinds == (float,) and isinstance(value, str):
            value = as_number(value)  # YAML 1.1 reads 2e-3 as text
        right = isinstance(value, (int, float) if kinds == (float,) else kinds)
        right = right and (bool in kinds or not isinstance(value, bool))  # Python counts True as a whole number
        if value is not None and not right:
            wanted = " or ".join(WORDS[kind] for kind in kinds)
            raise RecastError(f"{path}: {name} is {typename(value)} ({value!r}), and {wanted} is wanted", "Correct it.")
        if value is not None:
            found[key] = value
    return with_underscores(found)


def as_number(text: str) -> float | str:
    """The number that `text` is, else the text."""
    try:
        return float(text)
    except ValueError:
        return text


def typename(value: Any) -> str:
    """What a YAML value is, in words."""
    return WORDS.get(type(value), type(value).__name__)

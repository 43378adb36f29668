"""A YAML file as a tree of texts that know where they stand, with ``${VAR}`` and ``${VAR:-default}`` filled in.

Scalars stay text; the type of the setting decides what a text means, not YAML's own guess. So ``no`` is no boolean
where a name is wanted, ``0123`` stays as written, and a value from the environment or a flag takes the same way as one
in the file. Only YAML's core types are read: nothing in a file can make an object or run code.

A message of this module never quotes a value, for it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeAlias

import yaml

from .errors import ConfigError

#: Largest configuration file, in bytes: a larger one is some other file.
MAX_BYTES = 1 << 20

KeyPath: TypeAlias = tuple[str, ...]


class Place(NamedTuple):
    """Where a setting was made. Places sort as a reader meets them: file, environment, flags."""

    layer: int  # 0 file, 1 environment, 2 flag
    name: str
    line: int = 0  # 1-based; 0 outside files
    column: int = 0  # 1-based, in characters

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.layer == 0 else self.name


class Problem(NamedTuple):
    """One thing that is wrong, as one line of a ConfigError."""

    place: Place
    path: KeyPath
    text: str

    def __str__(self) -> str:
        # An environment variable or a flag names its key already.
        key = f"{dotted(self.path)}: " if self.path and self.place.layer == 0 else ""
        return f"{self.place}: {key}{self.text}"


class Mark(Enum):
    """A value that was reported as a problem already, so that nobody reports it again."""

    BROKEN = "broken"


Value: TypeAlias = "str | Mark | list[Node] | dict[str, Node] | None"


class Node(NamedTuple):
    """A value and its place: that of its key in a mapping, its own in a list."""

    place: Place
    value: Value


def dotted(path: KeyPath) -> str:
    """``pipeline.interval``; keys that are no plain words are quoted, so that a message stays one line."""
    return ".".join(key if re.fullmatch(r"[\w-]{1,64}", key) else repr(key[:64]) for key in path)


def read_yaml(path: Path, environ: Mapping[str, str]) -> tuple[Node, list[Problem]]:
    """The tree of a file and what is wrong in it; the top is always a mapping (empty for an empty file).

    Raises ConfigError, with ``file:line:column``, when there is no tree at all: the file is missing, unreadable, larger
    than `MAX_BYTES`, not UTF-8, not YAML, or not a mapping at its top.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}:1:1: can't read this file: {reason}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}:1:1: expected a configuration of at most {MAX_BYTES} bytes, got a larger file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place_of(raw[: error.start].decode("utf-8-sig"), str(path))
        raise ConfigError(f"{place}: expected UTF-8, got the byte 0x{raw[error.start]:02x}") from error
    return parse_yaml(text, str(path), environ)


def parse_yaml(text: str, name: str, environ: Mapping[str, str]) -> tuple[Node, list[Problem]]:
    """`read_yaml` for `text` that came from `name`."""
    builder = _Builder(text, name, environ)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        # `---` alone or `~` is as empty as a file of comments, where there is no root.
        value = (builder.value(root, ()) if root else None) or {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(0, name, mark.line + 1, mark.column + 1) if mark else Place(0, name, 1, 1)
        raise ConfigError(f"{place}: not valid YAML: {_safe_problem(error)}") from None
    except yaml.reader.ReaderError as error:
        place = _place_of(text[: error.position], name)
        code = f"U+{ord(text[error.position]):04X}"
        raise ConfigError(f"{place}: not valid YAML: the character {code} is not allowed") from None
    except RecursionError:
        raise ConfigError(f"{name}:1:1: expected settings two or three levels deep, got hundreds") from None
    except (ValueError, OverflowError) as error:  # PyYAML lets chr() of a \U escape and the like raise through
        raise ConfigError(f"{name}:1:1: not valid YAML: an escape that is no character") from error
    top = builder.place(root) if root else Place(0, name, 1, 1)
    if not isinstance(value, dict):
        what = "a list" if isinstance(value, list) else "text"
        raise ConfigError(f"{top}: expected a mapping of settings at the top, got {what}")
    return Node(top, value), builder.problems


class _Builder:
    """Turns PyYAML's nodes into ours; collects problems instead of stopping at the first."""

    def __init__(self, text: str, name: str, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._text = text
        self._name = name
        self._environ = environ
        # By node identity: what an alias stands for is built once, however often it is used.
        self._built: dict[int, Value] = {}
        self._open: set[int] = set()

    def place(self, node: yaml.Node) -> Place:
        return Place(0, self._name, node.start_mark.line + 1, node.start_mark.column + 1)

    def value(self, node: yaml.Node, path: KeyPath) -> Value:
        if id(node) in self._open:
            self._report(node, path, "an alias inside of what it stands for")
            return Mark.BROKEN
        if id(node) not in self._built:
            self._open.add(id(node))
            self._built[id(node)] = self._build(node, path)
            self._open.remove(id(node))
        return self._built[id(node)]

    def _build(self, node: yaml.Node, path: KeyPath) -> Value:
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if tag not in {"str", "int", "float", "bool", "null", "timestamp", "value", "seq", "map"}:
            self._report(node, path, "a tag that is not read here; put text that begins with ! in quotes")
            return Mark.BROKEN
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [Node(self.place(item), self.value(item, path)) for item in node.value]
        return None if tag == "null" else self._filled(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        merged: list[Value] = []
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                built = self.value(value, path)
                merged += [item.value for item in built] if isinstance(built, list) else [built]
            elif not isinstance(key, yaml.ScalarNode):
                self._report(key, path, "expected a name as the key, got a list or a mapping")
            elif key.value in entries:
                first = entries[key.value].place.line
                self._report(key, (*path, key.value), f"given twice, first in line {first}; keep one")
            else:
                entries[key.value] = Node(self.place(key), self.value(value, (*path, key.value)))
        for other in merged:
            if isinstance(other, dict):
                entries = {**other, **entries}
            elif other is not Mark.BROKEN:
                self._report(node, path, "expected a mapping, or a list of mappings, to merge with <<")
        return entries

    def _filled(self, node: yaml.Node, path: KeyPath) -> Value:
        before = len(self.problems)
        at = node.start_mark.index

        def fill(match: re.Match[str]) -> str:
            nonlocal at
            if match[0] == "$${":
                return "${"
            # The source may differ from the value by escapes and folding, so the reference is looked up in the source.
            found = self._text.find(match[0], at, node.end_mark.index)
            at = found + 1 if found >= 0 else at
            place = _place_of(self._text[: max(found, node.start_mark.index)], self._name)
            if match["name"] is None:
                text = "expected ${NAME} or ${NAME:-default}; write $${ for a ${ that is meant as it stands"
                self.problems.append(Problem(place, path, text))
                return ""
            value = self._environ.get(match["name"], "")
            if match["default"] is not None:
                return value or match["default"]
            if match["name"] not in self._environ:
                text = f"the environment variable {match['name']} is not set; set it, or write ${{NAME:-default}}"
                self.problems.append(Problem(place, path, text))
            return value

        filled = _VARIABLE.sub(fill, node.value)
        return filled if len(self.problems) == before else Mark.BROKEN

    def _report(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(self.place(node), path, text))


#: ``$${`` (a literal ``${``), ``${NAME}``, ``${NAME:-default}``, or a lone ``${``, which is an error.
_VARIABLE = re.compile(
    r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:(?!\$\{)[^}])*))?\})?",
)


def escape(text: str) -> str:
    """`text` written so that `read_yaml` fills nothing into it."""
    return text.replace("${", "$${")


def _place_of(before: str, name: str) -> Place:
    """The place just after the text `before`."""
    return Place(0, name, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _safe_problem(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's words for a syntax error, without the pieces of the text that two of them quote."""
    problem = error.problem or error.context or "unreadable"
    if problem.startswith("found undefined alias"):
        return "an alias (*name) without its anchor (&name); put text that begins with * in quotes"
    if "tag handle" in problem:
        return "a tag (!name!) that is not declared; put text that begins with ! in quotes"
    return problem

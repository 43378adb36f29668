"""Settings as typed structs: the one way from texts with places (file, environment, flags) to values, and back.

A section of settings is a `Section` struct. Its fields say everything once:
``Annotated[type, Meta(description=…, bounds)]``, with `extra` for what a type alone does not tell:

    kind       "duration" (int, ms), "size" (int, bytes) or "url" (str)
    expected   the words for a valid text in an error, when a pattern alone would not help

A field that ends in ``_ms`` has a key without it: the key `interval` is a duration, the attribute `interval_ms` an
integer. A plain number for a duration means seconds, or the unit in which the key ends (`cooldown_minutes`).
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import msgspec
from msgspec import inspect

from .errors import ConfigError
from .quantities import format_duration_ms, format_size, parse_duration_ms, parse_size, show
from .yamlfile import KeyPath, Mark, Node, Place, Problem, dotted

#: Keys of a section that do not go together (the first is the one to blame), and why, with their values.
Conflict: TypeAlias = tuple[tuple[str, ...], str]

SECRET = "<secret>"


class Secret:
    """A password or token, which no repr, log line, dump or error message shows. `reveal()` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return SECRET

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class Section(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename=lambda name: name.removesuffix("_ms"),
):
    """A group of settings. Its repr is that of the dump, so that a logged section shows no secret."""

    def conflicts(self) -> Iterator[Conflict]:
        """Settings that are each valid, but not together. Keys are YAML's, relative to this section."""
        return iter(())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in to_tree(self).items())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return list(to_tree(self).items())


S = TypeVar("S", bound=Section)


class _Number(NamedTuple):
    """How a kind of integer is written; `parse` gets the text and the unit of a plain number."""

    noun: str
    parse: Callable[[str, str], int]
    format: Callable[[int], str]


def _parse_int(text: str, _unit: str) -> int:
    if not re.fullmatch(r"-?[0-9](?:_?[0-9]){0,17}", text.strip()):
        raise ConfigError(f"expected a whole number, got {show(text)}")
    return int(text)


_NUMBERS = {
    "duration": _Number("a duration", lambda text, unit: parse_duration_ms(text, unit=unit), format_duration_ms),
    "size": _Number("a size", lambda text, _: parse_size(text), format_size),
    None: _Number("a whole number", _parse_int, str),
}
#: The unit of a plain number, by the word that ends the key; seconds for any other.
_KEY_UNITS = {"milliseconds": "ms", "minutes": "m", "hours": "h", "days": "d"}
_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:(?P<user>.*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(?P<rest>.*)"
)
_URL_SCHEMES = ("nats", "tls", "ws", "wss")


class _Wrong(Exception):
    """A value that cannot be used; without an argument, one that was reported already."""


def build(cls: type[S], tree: Node, overrides: Mapping[KeyPath, Node]) -> tuple[S, list[Problem]]:
    """The settings `cls` of a tree, with the leaves in `overrides` instead of the tree's, and what is wrong in them.

    A setting with a problem has its default in the result, which is of use only when there are no problems.
    """
    reader = _Reader(overrides, key_paths(cls))
    return reader.section(cls, tree, ()), reader.problems


def key_paths(cls: type[Section]) -> list[KeyPath]:
    """Every setting of `cls` and of the sections in it: ``("cluster",)``, ``("nats", "url")``, …"""
    paths: list[KeyPath] = []
    for field in _fields(cls):
        if inner := _section_of(field.type):
            paths += [(field.encode_name, *path) for path in key_paths(inner)]
        else:
            paths.append((field.encode_name,))
    return paths


def nearest(path: KeyPath, known: Sequence[KeyPath]) -> KeyPath | None:
    """The known setting or section that `path` was probably meant for: in the same section, else elsewhere.

    `known` are the paths of settings, of which every prefix is a section.
    """
    parent, name, depth = path[:-1], path[-1], len(path)
    siblings = {other[depth - 1]: other[:depth] for other in known if other[: depth - 1] == parent != other}
    elsewhere = {other[-1]: other for other in reversed(known)}
    for candidates, cutoff in ((siblings, 0.6), (elsewhere, 0.8)):
        for match in difflib.get_close_matches(name[:64].lower(), candidates, n=1, cutoff=cutoff):
            return candidates[match]
    return None


def to_tree(section: Section) -> dict[str, Any]:
    """Plain values by key, as a file would have them: durations and sizes as text, secrets as ``<secret>``."""
    fields = _fields(type(section))
    return {field.encode_name: _to_plain(field.type, getattr(section, field.name), {}) for field in fields}


def mask_url(url: str) -> str:
    """`url` with ``<secret>`` for its user name and password."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", rf"\1{SECRET}@", url, flags=re.DOTALL)


class _Reader:
    def __init__(self, overrides: Mapping[KeyPath, Node], known: list[KeyPath]) -> None:
        self.problems: list[Problem] = []
        self._overrides = overrides
        self._known = known
        self._places: dict[KeyPath, Place] = {}
        self._reported_before = 0

    def _flaws(self) -> int:
        return len(self.problems) + self._reported_before

    def section(self, cls: type[S], node: Node, path: KeyPath) -> S:
        before = self._flaws()
        entries = self._entries(node, path)
        values: dict[str, Any] = {}
        for field in _fields(cls):
            key = (*path, field.encode_name)
            given = self._overrides.get(key) or entries.get(field.encode_name)
            if inner := _section_of(field.type):
                values[field.name] = self.section(inner, given or Node(node.place, None), key)
            elif given:
                self._places[key] = given.place
                unit = _KEY_UNITS.get(field.encode_name.rpartition("_")[2], "s")
                try:
                    values[field.name] = _read(field.type, given.value, {"unit": unit})
                except _Wrong as wrong:
                    self._reported_before += not wrong.args
                    self.problems += [Problem(given.place, key, text) for text in wrong.args]
        self._report_unknown(entries, {field.encode_name for field in _fields(cls)}, path)
        result = cls(**values)
        if self._flaws() == before:  # else a default stands in for some value, and its conflicts are nobody's
            self._report_conflicts(result, path)
        return result

    def _entries(self, node: Node, path: KeyPath) -> dict[str, Node]:
        if isinstance(node.value, dict):
            return node.value
        if node.value is not None and node.value is not Mark.BROKEN:  # None: a section whose settings are all comments
            # The value is not shown: `nats: password` may hold one.
            what = "a list" if isinstance(node.value, list) else "text"
            self.problems.append(Problem(node.place, path, f"expected a section with settings of its own, got {what}"))
        return {}

    def _report_unknown(self, entries: dict[str, Node], known: set[str], path: KeyPath) -> None:
        for name, entry in entries.items():
            if name not in known:
                key = (*path, name)
                near = nearest(key, self._known)
                short = near and (near[len(path) :] if near[: len(path)] == path else near)
                hint = f"did you mean {dotted(short)!r}?" if short else f"known here are {', '.join(sorted(known))}"
                self.problems.append(Problem(entry.place, key, f"unknown key; {hint}"))

    def _report_conflicts(self, section: Section, path: KeyPath) -> None:
        for keys, text in section.conflicts():
            given = [key for key in ((*path, *name.split(".")) for name in keys) if key in self._places]
            if not given:  # a default conflicts with a default: nothing that a user could put right
                raise AssertionError(f"{type(section).__name__}: {text}")
            others = "".join(f"; {dotted(key)} is set at {self._places[key]}" for key in given[1:])
            self.problems.append(Problem(self._places[given[0]], given[0], text + others))


def _read(type_: inspect.Type, value: Any, extra: dict[str, Any]) -> Any:
    """The value of a Node as `type_`. Raises _Wrong."""
    if value is Mark.BROKEN:
        raise _Wrong
    match type_:
        case inspect.Metadata():
            return _read(type_.type, value, {**extra, **(type_.extra or {})})
        case inspect.UnionType(types=types):  # X | None; an empty text is none: compose files set unset variables so
            if value is None or value == "":
                return None
            return _read(next(t for t in types if not isinstance(t, inspect.NoneType)), value, extra)
        case inspect.VarTupleType(item_type=item):
            if isinstance(value, str):
                # A comma in a URL's password is no separator, so split only where the next one begins.
                return tuple(_read(item, one, extra) for one in re.split(r"\s*,\s*(?=\w+://)", value))
            if not value or not isinstance(value, list):
                raise _Wrong(f"expected {_expected(item, extra)}, or a list of such, got {_kind_of(value)}")
            return tuple(_read(item, node.value, extra) for node in value)
    if not isinstance(value, str):
        raise _Wrong(f"expected {_expected(type_, extra)}, got {_kind_of(value)}")
    if not _is_clean(value):
        raise _Wrong(f"expected {_expected(type_, extra)}, got text with control characters or not in UTF-8")
    return _read_text(type_, value, extra)


def _read_text(type_: inspect.Type, text: str, extra: dict[str, Any]) -> Any:
    wrong = f"expected {_expected(type_, extra)}, got "
    match type_:
        case inspect.CustomType():
            return Secret(text)
        case inspect.IntType(ge=ge, le=le):
            try:
                number = _NUMBERS[extra.get("kind")].parse(text, extra["unit"])
            except ConfigError as error:
                raise _Wrong(str(error) if "kind" in extra else wrong + show(text)) from None
            if (ge is not None and number < ge) or (le is not None and number > le):
                raise _Wrong(wrong + show(text))
            return number
        case inspect.BoolType():
            choices: dict[str, Any] = _BOOLS
        case inspect.LiteralType(values=values):
            choices = {str(value).lower(): value for value in values}
        case inspect.StrType() if extra.get("kind") == "url":
            return _read_url(text.strip(), wrong)
        case inspect.StrType(min_length=shortest, max_length=longest, pattern=pattern):
            if not (shortest or 0) <= len(text) <= (longest or len(text)) or (pattern and not re.search(pattern, text)):
                raise _Wrong(wrong + show(text))
            return text
        case _:
            raise TypeError(f"settings of the type {type_} are not supported; add a case here")
    if text.strip().lower() not in choices:
        raise _Wrong(wrong + show(text))
    return choices[text.strip().lower()]


def _read_url(text: str, wrong: str) -> str:
    """`text` when it is a URL of a server; no message quotes more than the scheme, for the rest may hold a password."""
    match = _URL.fullmatch(text)
    if not match:
        raise _Wrong(wrong + "text that is not scheme://host")
    if match["scheme"].lower() not in _URL_SCHEMES:
        raise _Wrong(wrong + f"one that begins with {match['scheme'][:20]}://")
    if re.search(r"[\s/?#@\[\]]", match["user"] or ""):
        raise _Wrong(wrong + "one with / ? # @ [ ] or a space in its user or password; give them by keys of their own")
    port = re.fullmatch(r"(?::([0-9]{1,5}))?(?:[/?#].*)?", match["rest"])
    if not port or int(port[1] or 1) not in range(1, 65536):
        raise _Wrong(wrong + "one whose port is no number from 1 to 65535")
    return text


def _expected(type_: inspect.Type, extra: dict[str, Any]) -> str:
    """The words for what a type takes: ``a duration from 1s to 1m``."""
    match type_:
        case inspect.Metadata():
            return _expected(type_.type, {**extra, **(type_.extra or {})})
        case inspect.IntType(ge=ge, le=le):
            number = _NUMBERS[extra.get("kind")]
            low = "" if ge is None else f" from {number.format(ge)}"
            return f"{number.noun}{low}" if le is None else f"{number.noun}{low} to {number.format(le)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case inspect.StrType() if extra.get("kind") == "url":
            return "a URL that begins with nats://, tls://, ws:// or wss://"
    return str(extra.get("expected", "text"))


def _to_plain(type_: inspect.Type, value: Any, extra: dict[str, Any]) -> Any:
    match type_:
        case inspect.Metadata():
            return _to_plain(type_.type, value, {**extra, **(type_.extra or {})})
        case inspect.StructType():
            return to_tree(value)
        case inspect.VarTupleType(item_type=item):
            items = [_to_plain(item, one, extra) for one in value]
            return items[0] if len(items) == 1 else items
        case inspect.IntType() if "kind" in extra:
            return _NUMBERS[extra["kind"]].format(value)
        case inspect.StrType() if extra.get("kind") == "url":
            return mask_url(value)
    return repr(value) if isinstance(value, Secret) else value


@functools.cache
def _fields(cls: type[Section]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return info.fields


def _section_of(type_: inspect.Type) -> type[Section] | None:
    return cast(type[Section], type_.cls) if isinstance(type_, inspect.StructType) else None


def _kind_of(value: object) -> str:
    return {type(None): "nothing", str: "text", list: "a list", dict: "a mapping"}.get(type(value), "something else")


def _is_clean(text: str) -> bool:
    """No control characters, and no lone surrogates, which stand for bytes of the environment that are not UTF-8."""
    return not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text)

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetmeter.proto.errors import ConfigError
from fleetmeter.proto.yamlfile import MAX_BYTES, Node, parse_yaml, read_yaml


def plain(value):
    """A tree without its places."""
    if isinstance(value, Node):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def tree_of(text, **environ):
    node, problems = parse_yaml(text, "f.yaml", environ)
    assert problems == []
    return plain(node)


def problems_of(text, **environ):
    return [str(problem) for problem in parse_yaml(text, "f.yaml", environ)[1]]


def test_scalars_stay_text():
    """YAML's guesses at types are not taken: what is written is what the setting's own type gets to read."""
    tree = tree_of("a: no\nb: 0123\nc: 1:30\nd: 2024-01-01\ne: 'null'\nf: ~\ng:\n")

    assert tree == {"a": "no", "b": "0123", "c": "1:30", "d": "2024-01-01", "e": "null", "f": None, "g": None}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~\n", "\ufeff# a byte order mark\n"])
def test_empty_file(text, tmp_path):
    """A file with no settings is an empty mapping, as one is whose settings are all comments."""
    path = tmp_path / "f.yaml"
    path.write_text(text, encoding="utf-8")

    assert plain(read_yaml(path, {})[0]) == {}


def test_places():
    """A setting stands where its key does, an item of a list where it begins itself."""
    tree: Any = parse_yaml("a:\n  bé: 1\n  c: [x,\n    y]\n", "f.yaml", {})[0]

    inner = tree.value["a"].value
    assert str(inner["bé"].place) == "f.yaml:2:3"
    assert [str(item.place) for item in inner["c"].value] == ["f.yaml:3:7", "f.yaml:4:5"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "1"),
        ("x${A}y${B:-2}z", "x1y2z"),
        ("${A:-2}", "1"),
        ("${EMPTY}", ""),
        ("${EMPTY:-2}", "2"),
        ("${B:-}", ""),
        ("${B:-nats://h:4222}", "nats://h:4222"),
        ("$${A}", "${A}"),
        ("$A $$ $", "$A $$ $"),
        ("${NESTED}", "${A}"),
    ],
)
def test_variables(text, value):
    """${VAR} is the variable, ${VAR:-x} is x when that is unset or empty, $${ is ${, and values are not read again."""
    assert tree_of(f"a: '{text}'", A="1", EMPTY="", NESTED="${A}") == {"a": value}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: ${X}", "1:4"),
        ("a: 'b ${X}'", "1:7"),
        ("a:\n- x\n- y${X}", "3:4"),
        ("a: |\n  one\n  two ${X}\n", "3:7"),
    ],
)
def test_variable_missing(text, place):
    """A variable that is not set is an error where it is used, which names it and the way out."""
    assert problems_of(text) == [
        f"f.yaml:{place}: a: the environment variable X is not set; set it, or write ${{NAME:-default}}"
    ]


@pytest.mark.parametrize("text", ["${", "${}", "${A", "${A-b}", "${1}", "${A:-${B}}", "${hunter two}"])
def test_variable_malformed(text):
    """A ${ that begins no reference is an error, which does not quote the text: it may be a password."""
    problems = problems_of(f"a: 'x{text}'", A="1", B="2")

    assert problems == [
        "f.yaml:1:6: a: expected ${NAME} or ${NAME:-default}; write $${ for a ${ that is meant as it stands"
    ]


def test_every_missing_variable_is_reported():
    """Two references to the same missing variable are two problems, at the place of each."""
    assert [line.split(": ")[0] for line in problems_of("a: ${X}${X}\nb: ${X}")] == [
        "f.yaml:1:4",
        "f.yaml:1:8",
        "f.yaml:2:4",
    ]


def test_duplicate_key():
    """A key that is given twice is an error at the second, which names the line of the first."""
    assert problems_of("a:\n  b: 1\n  c: 2\n  b: 3\n") == ["f.yaml:4:3: a.b: given twice, first in line 2; keep one"]


def test_aliases_and_merges():
    """Anchors, aliases and merge keys work; keys of the mapping itself win, then the first that is merged."""
    tree = tree_of("a: &a {x: 1, y: 2}\nb: &b {x: 3, z: 4}\nc: {<<: [*a, *b], y: 5}\nd: *a\n")

    assert tree["c"] == {"x": "1", "z": "4", "y": "5"}
    assert tree["d"] == {"x": "1", "y": "2"}


def test_alias_bomb():
    """Aliases that would expand to a billion values cost no more than their text."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]

    tree: Any = parse_yaml("\n".join(["a0: &a0 [x]", *levels]), "f.yaml", {})[0]

    assert len(tree.value) == 40


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &a [*a]", "f.yaml:1:4: a: an alias inside of what it stands for"),
        (
            "a: !!python/object/apply:os.system ['x']",
            "f.yaml:1:4: a: a tag that is not read here; put text that begins with ! in quotes",
        ),
        ("a: !hunter2", "f.yaml:1:4: a: a tag that is not read here; put text that begins with ! in quotes"),
        ("[a]: b", "f.yaml:1:1: expected a name as the key, got a list or a mapping"),
        ("a: {<<: b}", "f.yaml:1:4: a: expected a mapping, or a list of mappings, to merge with <<"),
    ],
)
def test_odd_yaml(text, problem):
    """YAML that means nothing in a configuration is an error at its place."""
    assert problems_of(text) == [problem]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: [1", "f.yaml:1:6: not valid YAML: "),
        (b"a:\n\tb: 1", "f.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token"),
        (b"a: 1\n---\nb: 2\n", "f.yaml:2:1: not valid YAML: but found another document"),
        (
            b"a: *hunter2",
            "f.yaml:1:4: not valid YAML: an alias (*name) without its anchor (&name); put text that begins with *",
        ),
        (b"a: !hunter2!x y", "f.yaml:1:4: not valid YAML: a tag (!name!) that is not declared"),
        (b"a: b\n\x00", "f.yaml:2:1: not valid YAML: the character U+0000 is not allowed"),
        (b'a: "\\UFFFFFFFF"', "f.yaml:1:1: not valid YAML: an escape that is no character"),
        (b"a: b\nc: d\xff", "f.yaml:2:5: expected UTF-8, got the byte 0xff"),
        (b"- a\n- b\n", "f.yaml:1:1: expected a mapping of settings at the top, got a list"),
        (b"\n  hunter2\n", "f.yaml:2:3: expected a mapping of settings at the top, got text"),
        (b"a: " + b"[" * 20_000, "f.yaml:1:1: expected settings two or three levels deep, got hundreds"),
        (b"#" * (MAX_BYTES + 1), "f.yaml:1:1: expected a configuration of at most 1048576 bytes, got a larger file"),
    ],
    ids=range(12),
)
def test_no_tree(raw, message, tmp_path, monkeypatch):
    """A file that is no mapping of settings is one error with its place, and with no word of what might be a secret."""
    monkeypatch.chdir(tmp_path)
    path = (tmp_path / "f.yaml").relative_to(tmp_path)
    path.write_bytes(raw)

    with pytest.raises(ConfigError) as caught:
        read_yaml(path, {})

    assert str(caught.value).startswith(message)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable(tmp_path):
    """A file that is missing or cannot be read is an error that says why."""
    with pytest.raises(ConfigError, match=r"none\.yaml:1:1: can't read this file: No such file or directory"):
        read_yaml(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match=r":1:1: can't read this file: Is a directory"):
        read_yaml(tmp_path, {})


ODD_PIECES = [*"ab:-[]{}&*!|>'\"%@`#,?$\\x~<= \n\t\r\x85\u2028\ud800", "${", "${A:-", ": ", "\n  ", "<<: ", "- "]


@given(st.lists(st.sampled_from(ODD_PIECES), max_size=40))
def test_any_text(pieces):
    """Whatever a file holds, it is a mapping, or a ConfigError of one line."""
    try:
        node, problems = parse_yaml("".join(pieces), "f.yaml", {})
        assert isinstance(node.value, dict)
        lines = [str(problem) for problem in problems]
    except ConfigError as error:
        lines = [str(error)]

    assert all(line.startswith("f.yaml:") and len(line.splitlines()) == 1 for line in lines)

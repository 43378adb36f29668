"""PROTOCOL.md says what the code does, byte for byte."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from fleetmeter.proto.catalogue import Kind
from fleetmeter.proto.keys import decode_key
from fleetmeter.proto.sketch import index_of
from fleetmeter.proto.subjects import node_of_token
from fleetmeter.proto.window import rows
from fleetmeter.proto.wire import Part, Sealed, decode, decode_frame, encode_frame
from support import vectors

TEXT = vectors.DOCUMENT.read_text(encoding="utf-8")
BLOCKS = vectors.read_blocks(TEXT)
ROOT = vectors.DOCUMENT.parents[1]


@pytest.mark.parametrize("name", sorted(vectors.blocks()))
def test_each_vector_is_what_this_build_encodes(name: str) -> None:
    """Every block of the document holds precisely the bytes that are sent."""
    assert BLOCKS[name] == vectors.blocks()[name]


def test_the_document_has_no_block_that_is_not_checked() -> None:
    """A vector that nobody checks would soon be wrong."""
    assert BLOCKS.keys() == vectors.blocks().keys()


def test_the_data_frame_decodes_to_what_the_document_says() -> None:
    """A reader that follows the document gets the numbers that stand beside the vector."""
    frame = decode_frame(bytes.fromhex(BLOCKS["data"]["frame"]))
    names = [decode_key(key)[0] for key in frame.counters.key_list()]
    assert frame.counters.fraction is not None
    numbers = zip(frame.counters.whole.tolist(), frame.counters.fraction.tolist(), strict=True)
    counters = dict(zip(names, numbers, strict=True))
    assert counters == {"requests_total": (3, 0), "cost_usd_total": (0, 1 << 62)}
    assert (frame.gauges.values.tolist(), frame.gauges.at_ms.tolist()) == ([42.0], [1700000002000])
    assert frame.sketches.zero.tolist() == [1]
    assert frame.sketches.counts.tolist() == [1, 2, 1]
    assert frame.sketches.indices.tolist() == index_of(np.array([0.25, 0.3, 8.0])).tolist()
    assert encode_frame(frame).hex() == BLOCKS["data"]["frame"]


def test_the_windows_decode_to_twice_the_frame() -> None:
    """The parts are those of two nodes that sent the same frame."""
    counters, gauges, sketches = (
        next(iter(rows(decode(Part, bytes.fromhex(BLOCKS[f"part {kind}"]["part"])))))
        for kind in ("counters", "gauges", "sketches")
    )
    assert (counters["increment"], counters["rate"], counters["total"]) == (6.0, 1.2, 106.0)
    assert (gauges["average"], gauges["sum"], gauges["nodes"]) == (42.0, 84.0, 2)
    assert (sketches["count"], sketches["min"], sketches["max"]) == (10, 0.0, 8.0)
    assert sketches["p50"] == pytest.approx(0.3, rel=0.0109)
    assert decode(Part, bytes.fromhex(BLOCKS["part counters"]["part"])) == vectors.part(Kind.COUNTER)
    assert decode(Sealed, bytes.fromhex(BLOCKS["sealed"]["marker"])) == vectors.sealed()


def test_tokens_and_buckets_read_back() -> None:
    """Tokens give their names back; bucket vectors are given as exact hexadecimal doubles."""
    for name, token in BLOCKS["tokens"].items():
        assert node_of_token(token) == ast.literal_eval(name)
    for double, index in BLOCKS["buckets"].items():
        assert index_of(np.array([float.fromhex(double)])).tolist() == [int(index)]


def test_every_reason_of_a_refusal_is_in_the_document() -> None:
    """Whoever sees a reason in frames_total finds it explained, and the document names none that does not exist."""
    raised: set[str] = set()
    for part in ("proto", "aggregator"):
        for file in (ROOT / part).glob("*.py"):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "FrameError":
                    reason = call.args[0]
                    raised |= {
                        n.value for n in ast.walk(reason) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                    }
    raised |= {"negative_counter", "malformed"}  # passed on in a variable
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", TEXT, re.MULTILINE))
    assert documented == raised


def test_the_document_names_files_that_exist() -> None:
    """Paths in the text lead somewhere."""
    for path in re.findall(r"`((?:proto|tests)/[a-z_/]+\.py)`", TEXT):
        assert (ROOT / Path(path)).is_file(), path

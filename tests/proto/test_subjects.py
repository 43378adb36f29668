"""Subjects, and node names as one token of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetmeter.proto.errors import FrameError
from fleetmeter.proto.subjects import Subjects, frame_id, node_of_token, node_token, resolution_name

few = settings(max_examples=200, deadline=None, derandomize=True)


@few
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_name_is_one_token_and_back(name: str) -> None:
    """A token has no character that NATS gives a meaning, and gives the name back."""
    token = node_token(name)
    assert not set(token) & set(". *>\t\r\n") and token.isascii()
    assert node_of_token(token) == name


@few
@given(st.text(st.characters(codec="ascii"), max_size=20))
def test_token_is_canonical_or_refused(token: str) -> None:
    """Of all tokens only the one that `node_token` writes is read."""
    try:
        name = node_of_token(token)
    except FrameError:
        return
    assert node_token(name) == token


@pytest.mark.parametrize("token", ["=41", "=c3=bc", "=FF", "=2", "a b", "ü", "=C3"])
def test_other_spellings_of_a_name_are_refused(token: str) -> None:
    """Needless, lower-case or broken escapes are refused: a name has one subject."""
    with pytest.raises(FrameError, match="token"):
        node_of_token(token)


def test_subjects_of_a_cluster() -> None:
    """The documented subjects, and wildcards that cover them."""
    subjects = Subjects("prod")
    assert subjects.delta(3, "host.1") == "fm.prod.delta.3.host=2E1"
    assert subjects.deltas_of(3) == ["fm.prod.delta.3.*", "fm.prod.tick.3", "fm.prod.settings"]
    assert subjects.window(5000, "requests_total", 0) == "fm.prod.window.5s.requests_total.0"
    assert subjects.sealed(60_000, 1) == "fm.prod.window.1m._sealed.1"
    assert subjects.windows_of("requests_total") == "fm.prod.window.*.requests_total.*"
    assert subjects.late("requests_total", 0) == "fm.prod.late.requests_total.0"
    assert subjects.resend("a b") == "fm.prod.resend.a=20b"
    assert frame_id("host.1", 7, 0, 9) == "host=2E1.7.0.9"


@pytest.mark.parametrize(
    ("ms", "name"), [(1000, "1s"), (5000, "5s"), (60_000, "1m"), (90_000, "90s"), (3_600_000, "1h"), (250, "250ms")]
)
def test_resolution_has_the_longest_unit_that_fits(ms: int, name: str) -> None:
    """A window length reads as people write it."""
    assert resolution_name(ms) == name

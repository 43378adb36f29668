"""When an emitter cuts frames, and over which spans."""

from __future__ import annotations

import pytest
from support.frames import T0

from fleetmeter.emitter import Emitter
from fleetmeter.emitter.outbox import Outbox
from fleetmeter.proto.clock import ManualClock
from fleetmeter.proto.config import Config, load_config
from fleetmeter.proto.wire import FrameKind, Settings, decode_frame


def emitter(at_ms: int = T0) -> tuple[Emitter, ManualClock, Outbox]:
    """One that is not started, so that what it cuts stays in its outbox."""
    config: Config = load_config(None, environ={}, flags={"emitter.host_metrics": "false"})
    clock = ManualClock(at_ms)
    made = Emitter(config, node="a", clock=clock)
    return made, clock, made._outbox


def spans(box: Outbox) -> list[tuple[FrameKind, int, int, int]]:
    """Kind, partition and span (ms since T0) of what was cut since the last call."""
    found = []
    while (sent := box.next(T0)) is not None:
        frame = decode_frame(sent.payload)
        found.append((frame.kind, frame.partition, frame.start_ms - T0, frame.end_ms - T0))
    return found


def test_new_emitter_says_hello_for_the_window_that_it_is_in() -> None:
    """The first frame begins and ends at the edge before now."""
    _, _, box = emitter(T0 + 12_345)
    assert spans(box) == [(FrameKind.HELLO, 0, 10_000, 10_000)]


def test_one_frame_a_window_also_when_nothing_happened() -> None:
    """At each edge, and not before, a frame is cut."""
    made, clock, box = emitter(T0 + 1000)
    spans(box)
    for ms in (2000, 4999, 5000, 5001, 9999, 10_000):
        clock.advance_to(T0 + ms)
        made.cut()
    assert spans(box) == [(FrameKind.DATA, 0, 0, 5000), (FrameKind.DATA, 0, 5000, 10_000)]


def test_process_that_was_stopped_has_one_frame_for_all_windows() -> None:
    """After a pause the frame reaches from the last edge to the newest."""
    made, clock, box = emitter()
    spans(box)
    clock.advance(33_333)
    made.cut()
    assert spans(box) == [(FrameKind.DATA, 0, 0, 30_000)]


@pytest.mark.parametrize(
    ("interval", "at"),
    [
        (60_000, [(59_999, []), (60_000, [(5000, 60_000)]), (120_000, [(60_000, 120_000)])]),
        (1000, [(5500, []), (6000, [(5000, 6000)]), (7000, [(6000, 7000)])]),
        (10_000, [(9999, []), (10_000, [(5000, 10_000)]), (20_000, [(10_000, 20_000)])]),
    ],
)
def test_new_interval_holds_from_the_next_edge_on(interval: int, at: list[tuple[int, list[tuple[int, int]]]]) -> None:
    """A frame that a change cuts short ends at the new grid's next edge, and spans go on without hole or overlap."""
    made, clock, box = emitter()
    clock.advance(5000)
    made.cut()
    made._adopt(Settings(interval_ms=interval))
    spans(box)
    for ms, cut in at:
        clock.advance_to(T0 + ms)
        made.cut()
        assert [(start, end) for _, _, start, end in spans(box)] == cut


def test_new_partitions_are_greeted_and_get_their_frames() -> None:
    """When there are more partitions, each new one has its hello first; every partition gets a frame."""
    made, clock, box = emitter()
    made._adopt(Settings(partitions=3))
    assert [(kind, partition) for kind, partition, *_ in spans(box)] == [(FrameKind.HELLO, i) for i in range(3)]
    clock.advance(5000)
    made.cut()
    assert [(kind, partition) for kind, partition, *_ in spans(box)] == [(FrameKind.DATA, i) for i in range(3)]

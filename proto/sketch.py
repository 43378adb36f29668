"""The sketch: a histogram with exponential buckets of fixed scale, from which any quantile is read with a known error.

Guarantee: for every quantile the answer is within `RELATIVE_ERROR` (1.09 %) of the exact one, relative; count, sum, min
and max are exact. Cost: one int64 per used bucket, 32 buckets per doubling. Merging is integer addition, so it is
associative, commutative and bit-for-bit repeatable.

It is OpenTelemetry's base-2 exponential histogram at scale 5 (opentelemetry-proto, metrics.proto,
ExponentialHistogram): bucket
`index` covers ``(2^(index/32), 2^((index+1)/32)]``. A Prometheus native histogram of schema 5 calls the same bucket
``index + 1``, by its upper bound. All normal doubles have indices in int16; zero and subnormal values go to the zero
bucket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .errors import SketchError
from .exact import F64, I64, ONE

SCALE = 5
PER_OCTAVE = 1 << SCALE
GROWTH: float = 2.0 ** (1 / PER_OCTAVE)
#: The harmonic midpoint 2·l·u/(l+u) of a bucket (l, u] is off by at most (g-1)/(g+1) = 1.083 % from any value in it;
#: rounding of the bounds adds less than 1e-15.
RELATIVE_ERROR = (GROWTH - 1) / (GROWTH + 1) + 1e-12

MIN_INDEX = -1022 * PER_OCTAVE - 1  # holds 2^-1022 itself, the smallest normal double
MAX_INDEX = 1024 * PER_OCTAVE - 1
SMALLEST_NORMAL = 2.0**-1022


# A double's exponent picks the octave; its top eight mantissa bits pick one of 256 slots, each of which holds at most
# one bucket bound (bounds are at least 2.19 % apart, slots 0.39 %); one comparison of mantissas settles it. Integers
# only: the same bits give the same bucket on any machine, which log() does not promise.
def _mantissa_of_bound(k: int) -> int:
    """Mantissa bits of 2^(k/32), rounded down: the floor of the 32nd root of 2^(52*32 + k), by five square roots."""
    root = 1 << (_MANTISSA_BITS * PER_OCTAVE + k)
    for _ in range(SCALE):
        root = math.isqrt(root)  # floor of a root of a floor is the floor of the root
    return root - (1 << _MANTISSA_BITS)


_MANTISSA_BITS = 52
_MANTISSA = np.uint64((1 << _MANTISSA_BITS) - 1)
_SLOT_SHIFT = np.uint64(_MANTISSA_BITS - 8)
_SIGN_EXPONENT_SHIFT = np.uint64(_MANTISSA_BITS)
_BOUNDS = np.array(
    [_mantissa_of_bound(k) for k in range(PER_OCTAVE)] + [1 << _MANTISSA_BITS],
    dtype=np.uint64,
)
#: For each slot: how many bounds lie strictly below its first mantissa, less one (-1: the first mantissa is an exact
#: power of two).
_SLOT_BASE = (np.searchsorted(_BOUNDS, np.arange(256, dtype=np.uint64) << _SLOT_SHIFT, side="left") - 1).astype(
    np.int64
)


def index_of(values: F64) -> I64:
    """Bucket indices of normal positive finite doubles (no check: `Sketch.record` and the emitter do that)."""
    bits = values.view(np.uint64)
    mantissa = bits & _MANTISSA
    base = _SLOT_BASE[mantissa >> _SLOT_SHIFT]
    exponent = (bits >> _SIGN_EXPONENT_SHIFT).astype(np.int64)
    exponent -= 1023
    exponent *= PER_OCTAVE
    exponent += base
    exponent += mantissa > _BOUNDS[base + 1]
    return exponent


def upper_bound(index: int) -> float:
    """Inclusive upper bound of a bucket; exact when `index + 1` is a multiple of 32, infinity for the last bucket."""
    octave, step = divmod(index + 1, PER_OCTAVE)
    return math.inf if octave > 1023 else math.ldexp(float(2.0 ** (step / PER_OCTAVE)), octave)


def lower_bound(index: int) -> float:
    """Exclusive lower bound of a bucket."""
    return upper_bound(index - 1)


def midpoint(index: int) -> float:
    """The value that stands for a bucket: the one whose relative error to both bounds is the same."""
    low = lower_bound(index)
    return low * (2 * GROWTH / (GROWTH + 1))


@dataclass(slots=True)
class Sketch:
    """One series' distribution. `units` is the exact sum in units of 2^-64 (see `exact`); `buckets` maps index to
    count.
    """

    count: int = 0
    units: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    zero: int = 0
    buckets: dict[int, int] = field(default_factory=dict)

    @property
    def sum(self) -> float:
        return self.units / ONE

    @property
    def mean(self) -> float:
        """Average of all values; NaN when there are none."""
        return self.units / ONE / self.count if self.count else math.nan

    def record(self, value: float) -> None:
        """Add one value. Raises SketchError when it is negative, not finite or not a number."""
        if not 0.0 <= value < math.inf:
            raise SketchError(f"a sketch takes finite values from 0 up, got {value!r}")
        self.count += 1
        self.units += int(value * ONE) if value < 1 else (int(value) << 64) + int((value - int(value)) * ONE)
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)
        if value < SMALLEST_NORMAL:
            self.zero += 1
        else:
            index = int(index_of(np.array([value]))[0])
            self.buckets[index] = self.buckets.get(index, 0) + 1

    def merge(self, other: Sketch) -> None:
        """Add everything that `other` has seen. Order and grouping of merges do not change the result."""
        self.count += other.count
        self.units += other.units
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.zero += other.zero
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count

    def quantile(self, q: float) -> float:
        """The value of rank ``ceil(q * count)`` (nearest-rank, the first for q = 0) within `RELATIVE_ERROR`.

        NaN when the sketch is empty. Raises SketchError for a `q` outside 0…1.
        """
        indices = np.fromiter(sorted(self.buckets), dtype=np.int64, count=len(self.buckets))
        counts = np.array([self.buckets[i] for i in indices.tolist()], dtype=np.int64)
        return quantile(q, self.count, self.zero, self.minimum, self.maximum, indices, counts)


def quantile(
    q: float,
    count: int,
    zero: int,
    minimum: float,
    maximum: float,
    indices: npt.NDArray[np.int16] | I64,
    counts: npt.NDArray[np.int64],
) -> float:
    """`Sketch.quantile` of a sketch in columns: `indices` ascending, with the `counts` at them."""
    if not 0.0 <= q <= 1.0:
        raise SketchError(f"a quantile lies in 0…1, got {q!r}")
    if count == 0:
        return math.nan
    rank = max(1, rank_of(q, count))
    if rank >= count:
        return maximum
    if rank == 1:
        return minimum
    if rank <= zero:
        return 0.0
    at = int(np.searchsorted(np.cumsum(counts), rank - zero, side="left"))
    # Clamping to what was really seen can only come closer to the exact value.
    return min(max(midpoint(int(indices[at])), minimum), maximum)


def rank_of(q: float, count: int) -> int:
    """``ceil(q * count)`` without the float's error: 0.95 of 20 is the 19th, though 0.95 * 20 > 19 in doubles
    elsewhere.
    """
    scaled = round(q * 10**9) * count
    return -(-scaled // 10**9)

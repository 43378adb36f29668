"""Bodies rendered once per window and format, plain and compressed, with an ETag: a request only picks the bytes."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

#: Below this many bytes compressing costs more than it saves.
_COMPRESS_FROM = 1024


@dataclass(slots=True)
class Body:
    """One rendered answer."""

    content_type: str
    plain: bytes
    etag: str
    _gzip: bytes | None = field(default=None)

    @property
    def compressed(self) -> bytes | None:
        """As gzip; None where that is not worth it."""
        if self._gzip is None and len(self.plain) >= _COMPRESS_FROM:
            self._gzip = gzip.compress(self.plain, compresslevel=5, mtime=0)
        return self._gzip


class Rendered:
    """The newest body of each format."""

    def __init__(self) -> None:
        self._bodies: dict[str, tuple[int, Body]] = {}

    def get(self, name: str, generation: int, content_type: str, render: Callable[[], bytes]) -> Body:
        """The body of this generation, rendered if that was not done yet."""
        found = self._bodies.get(name)
        if found is not None and found[0] == generation:
            return found[1]
        plain = render()
        body = Body(content_type, plain, f'"{hashlib.blake2b(plain, digest_size=12).hexdigest()}"')
        self._bodies[name] = (generation, body)
        return body

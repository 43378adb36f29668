"""Programs that tests measure us against. Where CI could have installed one, its absence is a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def given(path: Path) -> Path:
    """A file that lies beside the repository. Without it the test fails in CI, and is skipped with the reason
    elsewhere.
    """
    if path.exists():
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{path} is not there")
    pytest.skip(f"{path} is not there")


def require(program: str, package: str) -> str:
    """The path of a program. Without it the test fails in CI, and is skipped with the reason elsewhere."""
    path = shutil.which(program)
    if path is not None:
        return path
    reason = f"{program} is not installed; on Debian: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)

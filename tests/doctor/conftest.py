"""Finding one's way in what the doctor says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from renderkiln.home.checkup import Finding
from renderkiln.home.machine import Machine

GIGA = 10**9


def mac(**changes: object) -> Machine:
    """A Mac mini as one would like it, with changes."""
    facts: dict[str, object] = {
        "system": "Darwin",
        "macos": (15, 6),
        "release": "24.6.0",
        "architecture": "arm64",
        "chip": "Apple M2",
        "has_neural_engine": True,
        "is_virtual": False,
        "is_translated": False,
        "performance_cores": 4,
        "cores": 8,
        "memory": 16 * GIGA,
        "available": 9 * GIGA,
    }
    return Machine(**facts | changes)  # type: ignore[arg-type]


def states(findings: Iterable[Finding]) -> list[str]:
    return [finding.state for finding in findings]


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process cannot write to, whoever runs it."""
    folder = tmp_path / "unwritable"
    folder.mkdir(mode=0o500)
    if not os.access(folder, os.W_OK):
        yield folder
        folder.chmod(0o700)
    elif sys.platform == "linux":
        yield Path("/proc/sys")  # even root makes no files there
    else:
        pytest.skip("root can write everywhere here")

"""A world of fakes for each test."""

from __future__ import annotations

import pytest

from .fakes import World


@pytest.fixture
def world() -> World:
    return World()

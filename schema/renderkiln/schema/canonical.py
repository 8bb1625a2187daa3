"""Canonical JSON and the digests taken from it.

Canonical JSON is RFC 8785 (JCS), so that a producer in another language gets the same bytes: keys sorted, no white
space, numbers as ECMAScript prints them. Fields that hold their default are left out before hashing: a field added to
a later schema then does not change the digest of what was rendered before it existed.
"""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value (dicts, lists, strings, booleans, None, ints below 2**53, finite floats)."""
    return rfc8785.dumps(value)


def digest(value: Any) -> str:
    """SHA-256 over the canonical JSON of `value`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()

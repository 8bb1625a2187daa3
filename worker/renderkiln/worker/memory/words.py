"""How a library says that memory ran out, where it has no type of error for it."""

from __future__ import annotations

#: In small letters: of torch (mps, the CPU's allocator), Metal, Core ML, Core AI and C++.
_WORDS = (
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate",
    "invalid buffer size",
    "bad_alloc",
)


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of memory, by its type or by its words."""
    return isinstance(error, MemoryError) or any(words in str(error).casefold() for words in _WORDS)

"""Prompt lists: `.txt`, `.csv`, `.jsonl`, `.yaml`, standard input, single prompts; sweeps and wildcards.

    options = ListOptions(defaults={"num_inference_steps": 30}, sweeps=(parse_sweep("seed=1..8"),))
    for request in requests([read("prompts.txt", options)], resolve_image):
        print(request.where, request.spec.prompt)

What a list may hold is told in docs/prompt-lists.md.
"""

from .formats import READERS, SUFFIXES, is_list
from .lists import PROMPT, PromptList, read
from .model import MAX_JOBS_PER_PROMPT, Item, ListOptions, Request, Where
from .requesting import ResolveImage, requests
from .sweeps import Sweep, parse_sweep
from .templates import escape

FORMATS = tuple(READERS)

__all__ = [
    "FORMATS",
    "MAX_JOBS_PER_PROMPT",
    "PROMPT",
    "SUFFIXES",
    "Item",
    "ListOptions",
    "PromptList",
    "Request",
    "ResolveImage",
    "Sweep",
    "Where",
    "escape",
    "is_list",
    "parse_sweep",
    "read",
    "requests",
]

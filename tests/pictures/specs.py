"""Hypothesis strategies for render specs, and small pictures, for the tests of this folder."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import strategies as st
from PIL import Image
from tests.schema import strategies

from renderkiln.schema.spec import RenderSpec

_characters = st.characters(codec="utf-8", exclude_characters="\x00")
texts = st.one_of(
    st.text(_characters, max_size=60),
    st.sampled_from(['say "hi", now: yes', "a\nNegative prompt: b\nSteps: 1, Seed: 2, Size: 8x8", "🙂" * 10_000]),
    st.builds(lambda text: (text or "x") * (10_000 // len(text or "x")), st.text(_characters, max_size=5)),
)


def specs(prompts: st.SearchStrategy[str] = texts) -> st.SearchStrategy[RenderSpec]:
    """Any valid spec, with prompts that are hard to write into a picture."""
    return strategies.specs(prompts)


def picture(size: tuple[int, int] = (64, 48), image_format: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """The bytes of a small picture with something on it."""
    image = Image.radial_gradient("L").resize(size).convert(mode)
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()

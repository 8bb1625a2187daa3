"""Hypothesis strategies for render specs, and small pictures, for the tests of this folder."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from renderkiln.schema.schedulers import known_names
from renderkiln.schema.spec import RenderSpec, parse_spec

_characters = st.characters(codec="utf-8", exclude_characters="\x00")
texts = st.one_of(
    st.text(_characters, max_size=60),
    st.sampled_from(['say "hi", now: yes', "a\nNegative prompt: b\nSteps: 1, Seed: 2, Size: 8x8", "🙂" * 10_000]),
    st.builds(lambda text: (text or "x") * (10_000 // len(text or "x")), st.text(_characters, max_size=5)),
)
refs = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
sides = st.none() | st.integers(1, 512).map(lambda eighths: eighths * 8)


@st.composite
def specs(draw: st.DrawFn, prompts: st.SearchStrategy[str] = texts) -> RenderSpec:
    """Any valid spec."""
    fields: dict[str, Any] = {
        "model": draw(st.sampled_from(["shapes", "owner/a-model.v1", "sd15"])),
        "revision": draw(st.none() | st.sampled_from(["main", "refs/pr/1", "fp16"])),
        "prompt": draw(prompts),
        "negative_prompt": draw(prompts),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "num_inference_steps": draw(st.integers(1, 1000)),
        "guidance_scale": draw(st.floats(0, 50)),
        "scheduler": draw(st.none() | st.sampled_from(known_names())),
        "width": draw(sides),
        "height": draw(sides),
        "rng": draw(st.sampled_from(["torch", "numpy"])),
        "clip_skip": draw(st.none() | st.integers(1, 12)),
        "safety_checker": draw(st.booleans()),
    }
    if draw(st.booleans()):
        fields["init_image"] = draw(refs)
        # At least one step is left of those asked for.
        fields["strength"] = draw(st.floats(min(1.0, 1.01 / fields["num_inference_steps"]), 1))
        fields["mask_image"] = draw(st.none() | refs)
    return parse_spec(fields)


def picture(size: tuple[int, int] = (64, 48), image_format: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """The bytes of a small picture with something on it."""
    image = Image.radial_gradient("L").resize(size).convert(mode)
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()

"""Hypothesis strategies for specs and jobs that are valid."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from renderkiln.schema import JobOptions, RenderSpec, parse_spec
from renderkiln.schema.schedulers import known_names, most_steps

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
refs = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
sides = st.none() | st.integers(1, 512).map(lambda eighths: eighths * 8)


@st.composite
def controlnets(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of any valid ControlNet."""
    fields: dict[str, Any] = {"model": draw(st.sampled_from(["canny", "owner/depth.v2"])), "image": draw(refs)}
    fields["conditioning_scale"] = draw(st.just(1.0) | st.floats(0, 2))
    fields["guidance_start"] = draw(st.just(0.0) | st.floats(0, 1, exclude_max=True))
    fields["guidance_end"] = draw(st.just(1.0) | st.floats(fields["guidance_start"], 1, exclude_min=True))
    return fields


@st.composite
def specs(draw: st.DrawFn, prompts: st.SearchStrategy[str] = texts) -> RenderSpec:
    """Any valid spec."""
    scheduler = draw(st.none() | st.sampled_from(known_names()))
    fields: dict[str, Any] = {
        "model": draw(st.sampled_from(["shapes", "owner/a-model.v1", "sd15"])),
        "revision": draw(st.none() | st.sampled_from(["main", "refs/pr/1", "fp16"])),
        "prompt": draw(prompts),
        "negative_prompt": draw(prompts),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "num_inference_steps": draw(st.integers(1, (scheduler and most_steps(scheduler)) or 1000)),
        "guidance_scale": draw(st.floats(0, 50)),
        "scheduler": scheduler,
        "width": draw(sides),
        "height": draw(sides),
        "rng": draw(st.sampled_from(["torch", "numpy"])),
        "safety_checker": draw(st.booleans()),
    }
    if draw(st.booleans()):
        fields |= {"text_encoder": "system-multilingual", "script": draw(st.sampled_from(["latin", "cyrillic", "cjk"]))}
    else:
        fields["clip_skip"] = draw(st.none() | st.integers(1, 12))
    if draw(st.booleans()):
        fields["init_image"] = draw(refs)
        # At least one step is left of those asked for.
        fields["strength"] = draw(st.floats(min(1.0, 1.01 / fields["num_inference_steps"]), 1))
        fields["mask_image"] = draw(st.none() | refs)
    if draw(st.booleans()):
        fields["controlnets"] = draw(st.lists(controlnets(), max_size=4))
    return parse_spec(fields)


options = st.builds(
    JobOptions,
    num_images=st.integers(1, 10_000),
    priority=st.sampled_from(["high", "normal", "low"]),
    labels=st.dictionaries(st.text("abc", max_size=5), st.text("abc", max_size=5), max_size=3),
    max_attempts=st.integers(1, 20),
    timeout=st.none() | st.floats(0.5, 1000),
    image_format=st.sampled_from(["png", "jpeg", "webp"]),
    store=st.none() | st.sampled_from(["/renders", "s3://bucket/a"]),
)

"""Device and precision, noise, and the conversion to bytes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from renderkiln.schema.errors import BadImageError, SettingsError
from renderkiln.worker.engine import device, noise, quality
from renderkiln.worker.engine.libraries import diffusers

GB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with neither mps nor cuda, to be given them."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


def test_mps_comes_before_cuda_and_cuda_before_the_cpu(machine: pytest.MonkeyPatch) -> None:
    assert device.pick_device().type == "cpu"
    machine.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick_device().type == "cuda"
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.pick_device().type == "mps"
    assert device.pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu", "", "cpu:x"])
def test_a_device_that_is_not_there(machine: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(SettingsError, match="no device"):
        device.pick_device(name)


def test_a_cuda_device_too_many(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.pick_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(SettingsError, match="has 1"):
        device.pick_device("cuda:1")


def test_precision_follows_the_device() -> None:
    assert device.pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert device.pick_dtype("auto", torch.device("mps")) == torch.float16
    assert device.pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert device.pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(SettingsError, match="int8"):
        device.pick_dtype("int8", torch.device("cpu"))


def test_attention_is_sliced_on_small_macs_only() -> None:
    assert device.wants_attention_slicing(torch.device("mps"), 16 * GB)
    assert not device.wants_attention_slicing(torch.device("mps"), 64 * GB)
    assert not device.wants_attention_slicing(torch.device("cpu"), 16 * GB)
    assert not device.wants_attention_slicing(torch.device("cpu"))


def test_torchs_noise_is_the_same_in_every_precision() -> None:
    # diffusers draws in the precision of the latents; so the devices, whose precisions differ, start alike.
    for dtype in (torch.float16, torch.bfloat16):
        drawn = torch.randn(1, 4, 16, 16, generator=noise.generator(5), dtype=dtype)
        assert torch.equal(drawn, torch.randn(1, 4, 16, 16, generator=noise.generator(5)).to(dtype))


def test_numpys_noise_is_apples() -> None:
    drawn = noise.numpy_noise(2**32 - 1, (1, 4, 8, 6), dtype=torch.float32, device=torch.device("cpu"))
    np.random.seed(2**32 - 1)
    assert np.array_equal(drawn.numpy(), np.random.randn(1, 4, 8, 6).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bytes_are_those_of_diffusers(dtype: torch.dtype) -> None:
    image = torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    image[0, :, 0, :2] = torch.tensor([0.0, 1.0])
    processor = diffusers.image_processor.VaeImageProcessor()
    theirs = processor.postprocess(image, output_type="pil", do_denormalize=[False])[0]
    assert np.array_equal(quality.to_rgb(image), np.asarray(theirs))


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN"), (float("-inf"), "infinite values")])
def test_what_is_not_finite_is_no_picture(value: float, said: str) -> None:
    values = torch.zeros(1, 4, 2, 2, dtype=torch.float16)
    quality.check_finite(values, "after step 1 of 2")
    values[0, 0, 0, 0] = value
    with pytest.raises(BadImageError, match=rf"{said} after step 1 of 2 \(float16 on cpu\)"):
        quality.check_finite(values, "after step 1 of 2")


def test_one_pixel_that_is_not_black_is_enough() -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(BadImageError, match="all black"):
        quality.check_not_black(rgb, dtype="float32", device="cpu")
    rgb[0, 0, 0] = 1
    quality.check_not_black(rgb, dtype="float32", device="cpu")


def test_what_an_engine_is_can_be_told_without_torch() -> None:
    code = "import sys; from renderkiln.worker.engine import base; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

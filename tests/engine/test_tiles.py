"""A VAE that works in tiles: nearly the same pictures, in less memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from renderkiln.worker.engine.torch_engine import TorchEngine
from renderkiln.worker.memory.meter import Meter
from renderkiln.worker.memory.planning import Rule

from .conftest import SHORT, MakeJit, Renderer

INIT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), "RGB")


class TestTiles:
    def test_nearly_the_same_picture_and_a_note(self, render: Renderer, make_jit: MakeJit) -> None:
        in_tiles, _ = make_jit(Rule("jit", in_tiles=True))
        ours, whole = in_tiles()[0], render()[0]
        difference = np.frombuffer(ours.rgb, np.uint8).astype(float) - np.frombuffer(whole.rgb, np.uint8)
        assert difference.any()
        psnr = 10 * np.log10(255**2 / np.square(difference).mean())
        assert psnr > 24  # 26.8 with these random weights, of which each tile has its own group norms
        (note,) = ours.notes
        assert "in tiles" in note
        assert whole.notes == ()
        assert in_tiles()[0].rgb == ours.rgb

    def test_what_fits_in_one_tile_is_not_cut(self, render: Renderer, make_jit: MakeJit) -> None:
        in_tiles, _ = make_jit(Rule("jit", in_tiles=True))
        ours, whole = in_tiles(width=16, height=16)[0], render(width=16, height=16)[0]
        assert ours.rgb == whole.rgb
        assert ours.notes == ()

    def test_and_in_one_piece_again(self, render: Renderer, make_jit: MakeJit) -> None:
        engine, watch = make_jit(Rule("resident", in_tiles=True))
        assert engine()[0].notes
        watch.residency.set_rule(Rule("resident"))
        assert engine()[0].rgb == render()[0].rgb
        assert watch.residency.counts.loads == 3

    def test_an_init_image_too(self, render: Renderer, make_jit: MakeJit) -> None:
        in_tiles, _ = make_jit(Rule("jit", in_tiles=True))
        fields = {"init_image": in_tiles.picture(INIT), **SHORT, "num_inference_steps": 2}
        render.picture(INIT)
        assert in_tiles(**fields)[0].rgb != render(**fields)[0].rgb

    def test_takes_less_memory(self, library: Path, tmp_path: Path) -> None:
        meter = Meter()
        if meter.begin() == 0 or meter.end() == 0:
            pytest.skip("this system does not tell what a process holds")
        shutil.copytree(library / "tiny", tmp_path / "model")
        path = tmp_path / "model" / "vae" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": 128}))
        engine = TorchEngine(lambda name, revision: tmp_path / name, device="cpu")
        engine.warm_up("model")
        vae = engine._open("model", None).get("txt2img", safety_checker=False).vae
        took = []
        for in_tiles in (True, False):
            engine.residency.set_rule(Rule("resident", in_tiles=in_tiles))
            engine.residency.drop_all()
            with torch.inference_mode():
                before = meter.begin()
                vae.decode(torch.zeros(1, 4, 96, 96))
                took.append(meter.end() - before)
        assert took[0] < 0.6 * took[1]

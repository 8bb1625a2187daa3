"""Whoever made a model's folder gets nothing run: neither pickles in it nor Python beside them."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

import renderkiln.worker
from renderkiln.schema.errors import RenderkilnError
from renderkiln.worker.engine.torch_engine import TorchEngine

from .conftest import SHORT, Renderer

#: Calls that open pickles or run what a file says, by the last parts of their names.
FORBIDDEN = {
    *(
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "torch.load",
        "torch.jit.load",
        "torch.hub.load",
        "joblib.load",
    ),
    *(
        "marshal.load",
        "marshal.loads",
        "shelve.open",
        "dill.load",
        "joblib.load",
        "yaml.load",
        "yaml.full_load",
        "yaml.unsafe_load",
    ),
    *("os.system", "eval", "exec", "runpy.run_path", "importlib.util.spec_from_file_location", "pandas.read_pickle"),
}
#: Arguments that would have a library do so.
SWITCHES = {"trust_remote_code", "allow_pickle", "custom_pipeline", "weights_only", "shell"}
#: What a config says where it has classes of its own in the folder.
EVIL = {"AutoConfig": "modeling.Evil", "AutoModel": "modeling.Evil", "AutoTokenizer": ["modeling.Evil", None]}


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def test_no_line_of_ours_opens_a_pickle() -> None:
    (worker,) = (Path(path) for path in renderkiln.worker.__path__)
    root = worker.parents[2]
    files = [path for part in ("schema", "home", "producer", "worker") for path in (root / part).rglob("*.py")]
    assert len(files) > 200
    found = []
    for path in files:
        text = path.read_text()
        if not any(word in text for word in (*SWITCHES, *(name.rpartition(".")[2] + "(" for name in FORBIDDEN))):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                named = name in FORBIDDEN or name.split(".", 1)[-1] in FORBIDDEN - {"eval", "exec"}
                switches = {word.arg for word in node.keywords} & SWITCHES
                if named or switches:
                    found.append(f"{path.relative_to(root)}:{node.lineno}: {name} {switches or ''}")
    assert found == []


@pytest.mark.parametrize("instead", [False, True])
def test_what_lies_in_a_models_folder_is_not_run(library: Path, tmp_path: Path, instead: bool) -> None:
    model, marker = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(library / "tiny", model)
    bomb = pickle.dumps(_Bomb(marker))
    code = f"import os\nos.system('touch {marker}')\nclass Evil: pass\n"
    for folder in (model, *(path for path in model.iterdir() if path.is_dir())):
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.pt", "model.ckpt", "training_args.bin"):
            (folder / name).write_bytes(bomb)
        for name in ("pipeline.py", "modeling.py", "__init__.py", f"{folder.name}.py", "conftest.py"):
            (folder / name).write_text(code)
        for config in (folder / "config.json", folder / "tokenizer_config.json"):
            if config.is_file():
                config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": EVIL}))
    if instead:
        for path in model.rglob("*.safetensors"):
            path.unlink()
    render = Renderer(TorchEngine(lambda name, revision: model, device="cpu"))
    if instead:
        with pytest.raises(RenderkilnError, match="pickle"):
            render(model="model", **SHORT)
    else:
        assert len(render(model="model", **SHORT)) == 1
    assert not marker.exists()

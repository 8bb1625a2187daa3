"""macOS's text encoder: the calls to pyobjc, on a double of its NaturalLanguage; and models that render with it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.conftest import Renderer

from renderkiln.home.folder import DataFolder
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import InvalidSpecError, ModelLoadError, RenderFailedError
from renderkiln.worker.checkups import check_rendering
from renderkiln.worker.engine.converted.multilingual import SystemTextEncoder
from renderkiln.worker.engine.making import EngineChoice, make_engine
from renderkiln.worker.models.choosing import Wishes
from renderkiln.worker.runtimes import manifest as manifests
from renderkiln.worker.runtimes.apple.system import complaint_about_system
from renderkiln.worker.supervisor.forms import Forms

from .conftest import VECTOR, Library

pytestmark = pytest.mark.timeout(600)


class Error:
    """An NSError."""

    def localizedDescription(self) -> str:
        return "the assets are away"


class Result:
    """An NLContextualEmbeddingResult: a vector for each UTF-16 unit, as if each were a token."""

    def __init__(self, text: str) -> None:
        self._units = np.frombuffer(text.encode("utf-16-le"), np.uint16)

    def enumerateTokenVectorsInRange_usingBlock_(
        self, span: tuple[int, int], block: Callable[[list[float], tuple[int, int], Any], None]
    ) -> None:
        start, length = span
        assert start + length <= len(self._units)  # the framework raises NSRangeException
        for place in range(start, start + length):
            block([float(self._units[place]) / 2000] * VECTOR, (place, 1), None)


class Embedding:
    """An NLContextualEmbedding, and what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.has_assets, self.assets, self.loads, self.embeds = True, 0, True, True
        self.answers = True

    def contextualEmbeddingWithScript_(self, script: str) -> Embedding | None:
        self.calls.append(script)
        return None if script == "Hans" else self

    def hasAvailableAssets(self) -> bool:
        return self.has_assets

    def requestEmbeddingAssetsWithCompletionHandler_(self, handler: Callable[[int, Any], None]) -> None:
        self.calls.append("request")
        if self.answers:
            handler(self.assets, None if self.assets == 0 else Error())

    def loadWithError_(self, error: None) -> tuple[bool, Any]:
        self.calls.append("load")
        return (True, None) if self.loads else (False, Error())

    def dimension(self) -> int:
        return VECTOR

    def embeddingResultForString_language_error_(
        self, text: str, language: None, error: None
    ) -> tuple[Result | None, Any]:
        self.calls.append(text)
        return (Result(text), None) if self.embeds else (None, Error())


@pytest.fixture
def embedding(monkeypatch: pytest.MonkeyPatch) -> Embedding:
    """A Mac with macOS 15 whose NaturalLanguage is a double that writes down what is asked of it."""
    found = Embedding()
    framework = ModuleType("NaturalLanguage")
    framework.__spec__ = __spec__  # what find_spec looks at
    framework.NLContextualEmbedding = found  # type: ignore[attr-defined]
    for name, value in {"Latin": "Latn", "Cyrillic": "Cyrl", "SimplifiedChinese": "Hans"}.items():
        setattr(framework, f"NLScript{name}", value)
    monkeypatch.setitem(sys.modules, "NaturalLanguage", framework)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.6", ("", "", ""), "arm64"))
    return found


def test_a_text_becomes_vectors_and_the_encoder_stays_loaded(embedding: Embedding) -> None:
    encoder = SystemTextEncoder()
    vectors = encoder.embed("кот", "cyrillic")
    assert (vectors.shape, vectors.dtype) == ((3, VECTOR), np.float32)
    assert vectors[0, 0] == np.float32(ord("к") / 2000)
    assert encoder.embed("", "cyrillic").shape == (0, VECTOR)
    assert encoder.embed("🐈", "cyrillic").shape == (2, VECTOR)  # one sign, two UTF-16 units
    assert embedding.calls == ["Cyrl", "load", "кот", "", "🐈"]


def test_what_is_missing_is_fetched_first(embedding: Embedding) -> None:
    embedding.has_assets = False
    SystemTextEncoder().embed("chat", "latin")
    assert embedding.calls == ["Latn", "request", "load", "chat"]


@pytest.mark.parametrize(
    ("faults", "script", "error", "said"),
    [
        ({}, "cjk", ModelLoadError, "no text encoder for the script cjk"),
        ({"has_assets": False, "assets": 1}, "latin", ModelLoadError, "cannot fetch .*: the assets are away"),
        ({"has_assets": False, "answers": False}, "latin", ModelLoadError, "within 0.01 s"),
        ({"loads": False}, "latin", ModelLoadError, "cannot load .*: the assets are away"),
        ({"embeds": False}, "latin", RenderFailedError, "cannot embed the prompt: the assets are away"),
    ],
)
def test_what_macos_refuses_is_said(
    embedding: Embedding, faults: dict[str, Any], script: str, error: type[Exception], said: str
) -> None:
    for name, value in faults.items():
        setattr(embedding, name, value)
    with pytest.raises(error, match=said):
        SystemTextEncoder(fetching=0.01).embed("chat", script)


@pytest.mark.parametrize(
    ("system", "macos", "has_framework", "said"),
    [
        ("Linux", "", True, "needs a worker on macOS 14"),
        ("Darwin", "13.6", True, "needs macOS 14 or later, and this is 13.6"),
        ("Darwin", "", True, "an unknown one"),
        ("Darwin", "14.0", False, "pip install"),
    ],
)
def test_what_a_system_lacks(system: str, macos: str, has_framework: bool, said: str) -> None:
    assert said in (complaint_about_system(system, macos, has_framework) or "")


def test_what_a_system_needs() -> None:
    assert complaint_about_system("Darwin", "14.0", True) is None


class Recorder:
    """A `SystemText` that needs no Mac: a vector a letter."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def check(self) -> None:
        """Always at hand."""

    def embed(self, text: str, script: str) -> np.ndarray:
        self.texts.append((text, script))
        letters = [np.random.default_rng(ord(letter)).standard_normal(VECTOR) for letter in text]
        return np.array(letters, np.float32).reshape(-1, VECTOR)


@pytest.fixture
def made(library: Library) -> Path:
    """The tiny model, converted for the system's text encoder."""
    return library.converted("tiny-multilingual")


def renderer(folder: Path, data: Path, system_text: Any = None) -> Renderer:
    choice = EngineChoice(Wishes(engine="coreml"))
    return Renderer(make_engine(choice, lambda _name, _revision: folder, DataFolder(data), system_text=system_text))


MULTILINGUAL = {"text_encoder": "system-multilingual", "seed": 5}


def test_prompts_go_through_the_system_s_encoder_and_the_projection(made: Path, tmp_path: Path) -> None:
    text = Recorder()
    render = renderer(made, tmp_path, text)
    cat, again = render(prompt="кот", script="cyrillic", num_images=2, **MULTILINGUAL)
    assert text.texts == [("кот", "cyrillic"), ("", "cyrillic")]
    assert (cat.width, cat.notes) == (32, ())
    assert render(prompt="кот", script="cyrillic", **MULTILINGUAL)[0].rgb == cat.rgb != again.rgb
    assert render(prompt="пёс", script="cyrillic", **MULTILINGUAL)[0].rgb != cat.rgb
    assert "multilingual_projection" in {stage.stage for stage in render.engine.describe().stages}
    assert "text_encoder" not in {stage.stage for stage in render.engine.describe().stages}
    text.texts.clear()
    render(prompt="chat", negative_prompt="chien", guidance_scale=1, **MULTILINGUAL)
    assert text.texts == [("chat", "latin")]


def test_the_picture_is_that_of_the_torch_unet_with_these_embeddings(
    made: Path, library: Library, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from renderkiln.worker.engine.libraries import diffusers

    text = Recorder()
    image = renderer(made, tmp_path, text)(prompt="chat", guidance_scale=5, **MULTILINGUAL)[0]
    weight = load_file(library.projection)["weight"]

    def embeddings(prompt: str) -> torch.Tensor:
        padded = torch.zeros(1, 256, VECTOR)
        padded[0, : len(prompt)] = torch.from_numpy(text.embed(prompt, "latin"))
        return padded @ weight.T

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(library.torch("tiny"), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        wanted = pipeline(
            prompt_embeds=embeddings("chat"),
            negative_prompt_embeds=embeddings(""),
            num_inference_steps=3,
            guidance_scale=5,
            generator=torch.Generator().manual_seed(5),
            output_type="np",
        ).images[0]
    found = np.frombuffer(image.rgb, np.uint8).reshape(32, 32, 3)
    error = float(((found / 255 - wanted) ** 2).mean())
    assert 10 * np.log10(1 / error) > 35
    assert wanted.std() > 0.04


def test_a_prompt_that_fills_all_tokens_is_noted(made: Path, tmp_path: Path) -> None:
    image = renderer(made, tmp_path, Recorder())(prompt="a" * 300, **MULTILINGUAL)[0]
    assert image.notes == ("The prompt fills all 256 tokens that the model reads; what goes beyond is not read.",)


def test_vectors_of_another_width_are_an_error(made: Path, tmp_path: Path) -> None:
    class Wider(Recorder):
        def embed(self, text: str, script: str) -> np.ndarray:
            return np.zeros((2, 512), np.float32)

    with pytest.raises(ModelLoadError, match="takes vectors of 12 values, and this system's text encoder gives 512"):
        renderer(made, tmp_path, Wider())(prompt="chat", **MULTILINGUAL)


def test_the_self_test_needs_no_system_and_is_the_same_each_time(made: Path, tmp_path: Path) -> None:
    first, second = (renderer(made, tmp_path).engine.self_test_picture("tiny") for _ in range(2))
    assert (first == second).all()
    assert renderer(made, tmp_path).engine.warm_up("tiny").likeness is None


def test_a_worker_announces_who_reads_the_prompts_of_a_model(
    made: Path, library: Library, tmp_path: Path, embedding: Embedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"multi": made, "plain": library.converted("tiny"), "torch": library.torch("tiny")}
    forms = Forms(Settings(data_dir=tmp_path), folders.__getitem__, lambda _: None)
    said = {"multi": ("system-multilingual",), "plain": ("model",), "torch": ("model",)}
    assert forms.limits(folders, ()).text_encoders == said
    monkeypatch.setattr(platform, "mac_ver", lambda: ("13.6", ("", "", ""), "arm64"))
    assert forms.limits(folders, ()).text_encoders == said | {"multi": ()}


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has it")
def test_the_doctor_says_what_such_a_model_needs(made: Path, tmp_path: Path) -> None:
    data = DataFolder(tmp_path).ensure()
    data.models.mkdir()
    (data.models / "mine").symlink_to(made)
    (found,) = [each for each in check_rendering(Settings(data_dir=tmp_path)) if each.about == "model mine"]
    assert (found.state, found.says[:50]) == ("warning", "is made for macOS's text encoder, which needs a wo")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has it")
def test_where_there_is_no_such_encoder_that_is_said_before_anything_is_loaded(made: Path, tmp_path: Path) -> None:
    render = renderer(made, tmp_path)
    with pytest.raises(InvalidSpecError, match="system-multilingual needs a worker on macOS 14"):
        render(prompt="chat", **MULTILINGUAL)
    assert render.engine.describe().stages == ()


def test_model_and_spec_must_be_made_for_each_other(
    made: Path, library: Library, tmp_path: Path, original: Callable[[str], Renderer]
) -> None:
    with pytest.raises(InvalidSpecError, match="converted for the system's text encoder; ask for system-multilingual"):
        renderer(made, tmp_path, Recorder())(prompt="chat")
    with pytest.raises(InvalidSpecError, match="was not converted for the system's text encoder"):
        renderer(library.converted("tiny"), tmp_path, Recorder())(prompt="chat", **MULTILINGUAL)
    with pytest.raises(InvalidSpecError, match="only converted models render with macOS's text encoder"):
        original("tiny")(prompt="chat", **MULTILINGUAL)


def test_a_unet_that_reads_another_number_of_tokens_is_refused(made: Path, tmp_path: Path) -> None:
    found = manifests.read(made)
    stages = {name: stage for name, stage in found.stages.items() if name != "multilingual_projection"}
    for each in made.iterdir():
        (tmp_path / each.name).symlink_to(each)
    (tmp_path / manifests.FILE_NAME).unlink()
    manifests.save(found.model_copy(update={"stages": stages}), tmp_path)
    with pytest.raises(ModelLoadError, match="unet of tiny reads 256 tokens, and its text_encoder has 77"):
        renderer(tmp_path, tmp_path / "data", Recorder())(prompt="chat", **MULTILINGUAL)

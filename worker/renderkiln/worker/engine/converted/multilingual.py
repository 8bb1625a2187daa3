"""macOS's multilingual text encoder, `NLContextualEmbedding` of the NaturalLanguage framework (macOS 14), by pyobjc.

It turns a text into vectors, one for each piece of a word, in a space that the languages of a script share: 20 of the
Latin, 4 of the Cyrillic, 3 of Chinese, Japanese and Korean. What a model needs besides is a projection to the
embeddings that its UNet was trained with (`renderkiln convert --multilingual-projection`).

The names are those that pyobjc's metadata has; nothing here was run on a Mac yet (docs/mac.md).
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from renderkiln.schema.errors import ModelLoadError, RenderFailedError, UnsupportedHereError

from ...runtimes.apple.system import TEXT_FRAMEWORK, why_no_text_encoder
from ...runtimes.base import Array

log = logging.getLogger("renderkiln.engine")
#: The framework's name of each script; as in Apple's Swift package, Chinese stands for the three that share an encoder.
SCRIPTS: Mapping[str, str] = {
    "latin": "NLScriptLatin",
    "cyrillic": "NLScriptCyrillic",
    "cjk": "NLScriptSimplifiedChinese",
}
#: NLContextualEmbeddingAssetsResultAvailable.
_AVAILABLE = 0
#: Seconds for the first use of a script, when macOS fetches its encoder: less than 100 MB.
_FETCHING = 300.0


class SystemText(Protocol):
    """A text encoder of the system."""

    def check(self) -> None:
        """Raises UnsupportedHereError if this system has none, with what it needs. Loads nothing."""

    def embed(self, text: str, script: str) -> Array:
        """Vectors of a text, (n, E) float32, in its order; n may be 0.

        Args:
            script: one of `SCRIPTS`.

        Raises:
            UnsupportedHereError: see `check`.
            ModelLoadError: the script's encoder is not on this machine and cannot be fetched, or cannot be loaded.
            RenderFailedError: it cannot embed the text.
        """


class SystemTextEncoder:
    """A `SystemText`: the one of macOS. A script's encoder stays loaded once it was used."""

    def __init__(self, fetching: float = _FETCHING) -> None:
        """Loads nothing. `fetching`: seconds that macOS has for fetching an encoder."""
        self._fetching = fetching
        self._loaded: dict[str, Any] = {}

    def check(self) -> None:
        """See `SystemText.check`."""
        complaint = why_no_text_encoder()
        if complaint:
            raise UnsupportedHereError(f"text_encoder system-multilingual {complaint}")

    def embed(self, text: str, script: str) -> Array:
        """See `SystemText.embed`."""
        self.check()
        encoder = self._encoder(script)
        result, error = encoder.embeddingResultForString_language_error_(text, None, None)
        if result is None:
            raise RenderFailedError(f"macOS cannot embed the prompt: {_reason(error)}")
        vectors: list[Any] = []

        def keep(vector: Any, _range: Any, _stop: Any) -> None:
            vectors.append(np.array(vector, dtype=np.float32))

        # Ranges count UTF-16 units, as NSString does.
        result.enumerateTokenVectorsInRange_usingBlock_((0, len(text.encode("utf-16-le")) // 2), keep)
        return np.stack(vectors) if vectors else np.zeros((0, int(encoder.dimension())), np.float32)

    def _encoder(self, script: str) -> Any:
        if script not in self._loaded:
            framework = importlib.import_module(TEXT_FRAMEWORK)
            encoder = framework.NLContextualEmbedding.contextualEmbeddingWithScript_(
                getattr(framework, SCRIPTS[script])
            )
            if encoder is None:
                raise ModelLoadError(f"this macOS has no text encoder for the script {script}")
            if not encoder.hasAvailableAssets():
                self._fetch(encoder, script)
            is_loaded, error = encoder.loadWithError_(None)
            if not is_loaded:
                raise ModelLoadError(f"macOS cannot load its text encoder for the script {script}: {_reason(error)}")
            self._loaded[script] = encoder
        return self._loaded[script]

    def _fetch(self, encoder: Any, script: str) -> None:
        """Has macOS fetch what an encoder needs, and waits for that."""
        log.info("macOS fetches its text encoder for the script %s", script)
        answered = threading.Event()
        said: list[tuple[int, Any]] = []

        def hear(result: int, error: Any) -> None:
            said.append((int(result), error))
            answered.set()

        encoder.requestEmbeddingAssetsWithCompletionHandler_(hear)
        about = f"its text encoder for the script {script}"
        if not answered.wait(self._fetching):
            raise ModelLoadError(f"macOS has not fetched {about} within {self._fetching:g} s; try again when it has")
        result, error = said[0]
        if result != _AVAILABLE:
            raise ModelLoadError(
                f"macOS cannot fetch {about}: {_reason(error)}. Is this Mac connected to the internet?"
            )


def _reason(error: Any) -> str:
    """What an NSError says."""
    return "it does not say why" if error is None else str(error.localizedDescription())

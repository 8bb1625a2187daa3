"""Builds the tokenizer: CLIP's byte pair encoding with merges for just the words of our prompts."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTokenizer

from prompts import WORDS

MAX_LENGTH = 77  # as in Stable Diffusion, on purpose: nothing downstream has to know that this model is small
END_OF_WORD = "</w>"


def byte_letters() -> list[str]:
    """The 256 printable characters that stand for the 256 bytes, in CLIP's (that is, GPT-2's) order."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(printable))
    return list(letters.values())


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make each word one token.

    Words are taken in turn: the merges so far are applied, and what is left is joined from the left.
    A later merge never spoils an earlier word, since earlier merges are always applied first.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + END_OF_WORD]
        for pair in merges:
            parts = _merge(parts, pair)
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            merges.append(pair)
            parts = _merge(parts, pair)
    return merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json and merges.txt into `folder` and load the tokenizer from them."""
    merges = learn_merges(WORDS)
    letters = byte_letters()
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters)]
    tokens += dict.fromkeys(left + right for left, right in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer

"""What both trainings share: a clock that drives the learning rate, averaged weights, safe saving."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Clock:
    """Time and steps of a training that ends after so many minutes, over all its resumptions.

    The learning rate falls along a cosine of the share of time spent, so a slow machine gets fewer
    steps but still ends with a small rate.
    """

    def __init__(self, minutes: float, peak: float, warmup_steps: int) -> None:
        self.budget = minutes * 60
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.step = 0
        self._before = 0.0
        self._start = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return self._before + time.monotonic() - self._start

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.spent >= self.budget

    def rate(self) -> float:
        """The learning rate now."""
        share = min(1.0, self.spent / self.budget)
        floor = 0.01
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
        return self.peak * min(1.0, (self.step + 1) / self.warmup_steps) * cosine

    def tick(self) -> None:
        """One step is done."""
        self.step += 1

    def state_dict(self) -> dict[str, float]:
        """What `resume` needs."""
        return {"step": self.step, "spent": self.spent}

    def resume(self, state: dict[str, float]) -> None:
        """Go on from a saved state."""
        self.step = int(state["step"])
        self._before = float(state["spent"])
        self._start = time.monotonic()

    def __str__(self) -> str:
        pace = self.spent / max(1, self.step)
        return f"({self.spent / 60:.1f} of {self.budget / 60:.0f} min, {pace:.3f} s/step)"


class Ema:
    """A running average of a model's weights, which draws better than the weights themselves."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the current weights. Early on the average is shorter, so that it forgets the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.weights, [p.detach() for p in model.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give the average to a model."""
        for parameter, weight in zip(model.parameters(), self.weights, strict=True):
            parameter.copy_(weight)

    def state_dict(self) -> list[torch.Tensor]:
        """The averaged weights."""
        return self.weights

    def load_state_dict(self, weights: list[torch.Tensor]) -> None:
        """Take over averaged weights."""
        for mine, theirs in zip(self.weights, weights, strict=True):
            mine.copy_(theirs)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint such that a crash leaves the old one or the new one, never half a file."""
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    scratch.replace(path)

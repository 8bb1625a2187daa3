"""Flags of the command line that more than one command has: each overrides the setting of its name."""

from __future__ import annotations

from typing import Annotated

import typer

Engine = Annotated[str | None, typer.Option(help="What runs the stages: auto, torch, coreml or coreai.")]
Device = Annotated[str | None, typer.Option(help="Of the torch engine: auto, mps, cuda or cpu.")]
ComputeUnit = Annotated[
    str | None, typer.Option(help="Of Core ML: auto, cpu_and_ne, cpu_and_gpu, cpu_only, all or reference.")
]
Variant = Annotated[
    str | None, typer.Option(help="Of a converted model: auto, original, split-einsum or split-einsum-v2.")
]
Memory = Annotated[
    str | None,
    typer.Option(help="What stays in memory: resident (all), jit (the stage at work), auto (what fits)."),
]
MemoryBudget = Annotated[str | None, typer.Option(help="What a renderer may take, such as 6GB.")]

#: The settings of the flags above, for who hands them on to another process.
RENDERING = ("engine", "device", "compute_unit", "variant", "memory", "memory_budget")

"""What a run goes on from as if it had not been stopped: what a checkpoint holds of the training loop, and
a log of metrics without the lines that will be written again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptloop import checkpoint
from promptloop.parameters import Averaged
from promptloop.sharding import divided_as, full
from promptloop.swap import put

Generators = tuple[dict[str, Tensor], dict[str, Any]]  # checkpoint.generators(), and an objective's memory
OWN = "objective."  # before the names of that memory


def held(
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    averaged: Averaged | None,
    done: int,
    generators: Generators,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that the next update depends on: weights, optimiser, average, generators, counters."""
    tensors: dict[str, Tensor] = {f"weight.{name}": full(p) for name, p in parameters.items()}
    for name, p in parameters.items():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"optimizer.{key}.{name}"] = full(torch.as_tensor(value))
    if averaged is not None:
        tensors |= {f"average.{name}": full(value) for name, value in averaged.weights.items()}
    numbers, words = generators
    state = {
        "update": done,
        "average_updates": averaged.updates if averaged else 0,
        "generators": words,
        "time": time.time(),
    }
    return tensors | numbers, state


def restored(
    found: checkpoint.Checkpoint,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    averaged: Averaged | None,
) -> int:
    """Puts a checkpoint in place; the number of updates it has seen."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in found.tensors.items() if n.startswith(prefix)}

    put(parameters, {name: divided_as(t, parameters[name]) for name, t in under("weight.").items()})
    for key in ("step", "exp_avg", "exp_avg_sq"):
        for name, value in under(f"optimizer.{key}.").items():
            p = parameters[name]
            optimizer.state[p][key] = value.clone() if key == "step" else divided_as(value.clone(), p)
    if averaged is not None:
        averaged.weights = {n: divided_as(t, parameters[n]) for n, t in under("average.").items()}
        averaged.updates = int(found.state["average_updates"])
    return int(found.state["update"])


def moved(memory: Callable[[], dict[str, Tensor]]) -> Generators:
    """What collecting a batch moves beside the weights: the generators, and the objective's own `memory`."""
    numbers, words = checkpoint.generators()
    return numbers | {f"{OWN}{name}": kept for name, kept in memory().items()}, words


def went_on(found: checkpoint.Checkpoint, remember: Callable[[dict[str, Tensor]], None]) -> None:
    """Puts back what `moved` has kept in a checkpoint."""
    checkpoint.set_generators(found.tensors, found.state["generators"])
    remember({n.removeprefix(OWN): kept for n, kept in found.tensors.items() if n.startswith(OWN)})


def add_line(log: Path, line: dict[str, float]) -> None:
    """Appends a line of JSON: whole numbers as they are, others to six digits, however small."""
    told = {k: v if isinstance(v, int) or v.is_integer() else float(f"{v:.6g}") for k, v in line.items()}
    with log.open("a") as file:
        file.write(json.dumps(told) + "\n")


def cut(log: Path, update: int) -> None:
    """Drops the lines after `update`: a run that goes on from there writes them again."""
    if log.exists():
        lines = log.read_text().splitlines(True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["update"] <= update]
        if kept != lines:
            part = log.with_suffix(".part")
            part.write_text("".join(kept))
            part.replace(log)

"""The training loop: collect, loss, step; log, checkpoint, resume. What is trained and why is the
objective's.

A run that was killed and resumed equals the run that was not, bit for bit on a CPU: every batch is a
function of the update's number, and a checkpoint holds the rest.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from promptloop import checkpoint
from promptloop.interrupt import Interrupt, Stopped
from promptloop.objectives.contract import Batch, Objective
from promptloop.parameters import Averaged, trained
from promptloop.processes import Processes
from promptloop.sharding import divided_as, full
from promptloop.swap import put
from promptloop.timing import Stopwatch

Line = dict[str, float]
Generators = tuple[dict[str, Tensor], dict[str, Any]]  # checkpoint.generators()
After = Callable[[int, Batch, Line], Line]  # (updates done, batch, metrics) -> metrics to add


@final
@dataclass(frozen=True)
class Training:
    """`updates` batches with `epochs` optimiser steps on each; learning rate `lr` after `warmup` updates.

    `average` is the decay of the weights' moving average, which is what is saved as the result (0: none).
    """

    updates: int = 100
    epochs: int = 1
    lr: float = 1e-3
    warmup: int = 5
    decay_to: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    average: float = 0.0
    save_every: int = 10
    keep: int = 3

    def __post_init__(self) -> None:
        least = {"updates": 1, "epochs": 1, "warmup": 0, "save_every": 1, "keep": 1, "decay_to": 0,
                 "weight_decay": 0}  # fmt: skip
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {value}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average is {self.average}; give 0 (none) or a decay below 1")
        if not 0 < self.lr < math.inf or not self.max_grad_norm > 0:
            raise ValueError(f"lr is {self.lr}, max_grad_norm {self.max_grad_norm}; both must be positive")

    def rate(self, update: int) -> float:
        """Linear warm-up, then a cosine down to `decay_to` of lr."""
        rise = min(1.0, (update + 1) / max(self.warmup, 1))
        fall = 0.5 * (1 + math.cos(math.pi * update / self.updates))
        return self.lr * rise * (self.decay_to + (1 - self.decay_to) * fall)


def train(
    objective: Objective,
    network: nn.Module,
    settings: Training,
    run: Path,
    *,
    processes: Processes | None = None,
    save: Callable[..., None] | None = None,
    after: Sequence[After] = (),
    last_good: bool = False,
    stop_at: int | None = None,
) -> int:
    """Trains to `settings.updates` (or `stop_at`), going on from the newest checkpoint in `run`; the last
    update.

    `save(folder, weights=)` adds the run's own files to a checkpoint; weights are None unless processes share
    them. `after` sees every batch, may add metrics, and is where sheets and the hacking watch are hooked in.
    Metrics are appended to `run/metrics.jsonl`. SIGINT and SIGTERM end it by `Stopped`; whatever ends it, a
    checkpoint of the last whole update is left.
    """
    processes = processes or Processes()
    parameters = trained(network)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    averaged = Averaged(parameters, settings.average) if settings.average else None
    found = checkpoint.read(run, last_good=last_good)
    first = 0 if found is None else restored(found, parameters, optimizer, averaged)
    cut(run / "metrics.jsonl", first) if processes.main else None

    def update_of(number: int, hold: Callable[[], None]) -> Generators:
        if number == first:
            with processes.whole():
                objective.check(processes.share)
            if found is not None:
                checkpoint.set_generators(found.tensors, found.state["generators"])
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(number)
        batch, line = one_update(objective, optimizer, parameters, settings, number, processes, hold)
        if averaged is not None:
            averaged.update()
        line = {"update": number + 1, "lr": settings.rate(number), **line}
        for hook in after:
            line |= hook(number + 1, batch, line)
        add_line(run / "metrics.jsonl", line) if processes.main else None
        return checkpoint.generators()

    def write(done: int, generators: Generators) -> None:
        tensors, state = held(parameters, optimizer, averaged, done, generators)
        add = None if save is None else partial(save, weights=processes.weights())
        if processes.main:
            checkpoint.write(run, done, tensors, state, add=add, keep=settings.keep)

    with Interrupt(patient=processes.sharded is not None) as interrupt:
        last = min(settings.updates, stop_at or settings.updates)
        whole_updates(range(first, last), settings.save_every, run, processes, interrupt, update_of, write)
    if averaged is not None:
        put(parameters, averaged.weights)
    return last


def whole_updates(
    numbers: range,
    save_every: int,
    run: Path,
    processes: Processes,
    interrupt: Interrupt,
    update_of: Callable[[int, Callable[[], None]], Generators],
    write: Callable[[int, Generators], None],
) -> None:
    """The updates one after another, with a checkpoint every `save_every`, at the end, and of the last whole
    one where something ends the run.

    Divided weights take all processes to be saved, so there a signal waits until they have ended an update.
    """
    done = saved = numbers.start
    generators = checkpoint.generators()
    try:
        for number in numbers:
            made = update_of(number, interrupt.hold)
            done, generators = number + 1, made
            own = float(interrupt.pending or 0)
            came = processes.totals({"signal": own})["signal"] if interrupt.patient else 0.0
            if done % save_every == 0 or done == numbers.stop or came:
                write(done, generators)
                saved = done
            if came:
                raise Stopped(interrupt.pending or signal.SIGTERM)
            interrupt.release()
    except BaseException as error:
        if saved < done and processes.main and not interrupt.held and not interrupt.patient:
            write(done, generators)
            saved = done
        signalled = error.number if isinstance(error, Stopped) else interrupt.pending
        if signalled is not None:
            raise Stopped(signalled, ended_by(signalled, run, saved) if processes.main else "") from None
        raise


def ended_by(number: int, run: Path, saved: int) -> str:
    """What is told of a run that a signal has ended."""
    there = f"checkpoint {saved} is in {run / 'checkpoints'}: go on by --resume" if saved else (
        "no update was whole, so nothing is saved")  # fmt: skip
    return f"stopped by {signal.Signals(number).name}; {there}"


def one_update(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    settings: Training,
    update: int,
    processes: Processes,
    hold: Callable[[], None] = lambda: None,
) -> tuple[Batch, Line]:
    """Collects one batch and takes `epochs` steps on it. ValueError where the loss is not finite.

    `hold` is called before the weights begin to move.
    """
    watch = Stopwatch()
    with processes.whole():
        batch = objective.collect(update, processes.share)
    sums = dict.fromkeys(("loss", *objective.summed), 0.0)
    norm = 0.0
    told = processes.totals({"parts": float(len(batch.parts))})["parts"]
    with watch("update"):
        for _ in range(settings.epochs if told else 0):  # no group tells anything: nothing moves
            optimizer.zero_grad(set_to_none=True)
            with processes.whole():
                sums = gradients(objective, batch, update)
                processes.sum_gradients(list(parameters.values()), objective.touched)
            given = [p for p in parameters.values() if p.grad is not None]
            if given:
                norm = float(full(nn.utils.clip_grad_norm_(given, settings.max_grad_norm)))
                if not math.isfinite(norm):
                    raise ValueError(
                        f"the gradient of update {update + 1} is not finite; nothing was changed"
                    )
                hold()
                optimizer.step()
    hold()
    sums = processes.totals(sums)
    tokens = sums.pop("tokens", 0.0)
    means = {name: value if name == "loss" else value / tokens
             for name, value in sums.items() if name == "loss" or tokens}  # fmt: skip
    seconds = {f"seconds/{name}": value for name, value in {**batch.seconds, **watch.seconds}.items()}
    line = {**processes.means(batch.metrics), **means, "gradient_norm": norm, "tokens": tokens, **seconds}
    return batch, line


def gradients(objective: Objective, batch: Batch, update: int) -> dict[str, float]:
    """Adds up the gradients of the batch's parts; their losses and metrics, summed."""
    sums = dict.fromkeys(("loss", *objective.summed), 0.0)
    for part in batch.parts:
        loss, metrics = objective.loss(part)
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss of update {update + 1} is {loss.item()}; nothing was changed by it")
        loss.backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


# --- what a checkpoint holds


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


def add_line(log: Path, line: Line) -> None:
    with log.open("a") as file:
        file.write(json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n")


def cut(log: Path, update: int) -> None:
    """Drops the lines after `update`: a run that goes on from there writes them again."""
    if log.exists():
        lines = log.read_text().splitlines(True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["update"] <= update]
        if kept != lines:
            part = log.with_suffix(".part")
            part.write_text("".join(kept))
            part.replace(log)

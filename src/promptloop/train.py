"""The training loop: collect, loss, step; log, checkpoint, resume. What is trained and why is the
objective's.

A run that was killed and resumed equals the run that was not, bit for bit on a CPU: every batch is a
function of the update's number, and a checkpoint holds the rest.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from promptloop import checkpoint
from promptloop.interrupt import Interrupt, Stopped, ended_by
from promptloop.objectives.contract import Batch, Objective
from promptloop.parameters import Averaged, trained
from promptloop.processes import Processes
from promptloop.resuming import Generators, add_line, cut, held, moved, restored, went_on
from promptloop.sharding import full
from promptloop.swap import put
from promptloop.timing import Stopwatch

MOST = 1_000_000  # updates: more are a slip of the keyboard
Line = dict[str, float]
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
            if not getattr(self, name) >= value:  # nan passes no comparison
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {value}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average is {self.average}; give 0 (none) or a decay below 1")
        if self.updates > MOST:
            raise ValueError(f"steps (updates) is {self.updates}; it must be at most {MOST}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}; it must be a finite number above 0")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}; it must be above 0")

    def rate(self, update: int) -> float:
        """A cosine from lr down to `decay_to` of it over all updates, times a linear rise over the first
        `warmup` of them: the cosine falls while the rate still rises.
        """
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
    Metrics are appended to `run/metrics.jsonl`. SIGINT and SIGTERM end it by `Stopped`. Whatever ends it, a
    checkpoint of the last whole update is left, also of one that a hook failed after; but for two cases, in
    which the newest of every `save_every` stands: an error between the `epochs` steps of an update, whose
    weights are no update's, and an error (no signal) where the weights are divided among processes.
    """
    processes = processes or Processes()
    parameters = trained(network)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    averaged = Averaged(parameters, settings.average) if settings.average else None
    found = checkpoint.read(run, last_good=last_good)
    first = restored(found, parameters, optimizer, averaged) if found else 0
    cut(run / "metrics.jsonl", first) if processes.main else None

    def update_of(number: int, hold: Callable[[], None]) -> tuple[Batch, Line]:
        if number == first:
            with processes.whole():
                objective.check(processes.share)
            if found is not None:
                went_on(found, objective.remember)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(number)
        batch, line = one_update(objective, optimizer, parameters, settings, number, processes, hold)
        if averaged is not None:
            averaged.update()
        return batch, {"update": number + 1, "lr": settings.rate(number), **line}

    def write(done: int, generators: Generators) -> None:
        tensors, state = held(parameters, optimizer, averaged, done, generators)
        add = None if save is None else partial(save, weights=processes.weights())
        if processes.main:
            checkpoint.write(run, done, tensors, state, add=add, keep=settings.keep)

    told = telling(after, run / "metrics.jsonl" if processes.main else None, averaged)
    with Interrupt(patient=processes.sharded is not None) as interrupt:
        last = min(settings.updates, stop_at or settings.updates)
        whole_updates(range(first, last), settings.save_every, run, processes, interrupt, update_of, told,
                      write, objective.memory)  # fmt: skip
    if averaged is not None:
        put(parameters, averaged.weights)
    return last


def telling(
    after: Sequence[After], log: Path | None, averaged: Averaged | None = None
) -> Callable[[int, Batch, Line], None]:
    """Lets the hooks add to the line of an update that is whole, and writes it, also where one has failed.

    What they look at are the weights that would be saved: where there is an average, that.
    """

    def told(number: int, batch: Batch, line: Line) -> None:
        looked_at = averaged.in_place() if averaged is not None and after else nullcontext()
        try:
            with looked_at:
                for hook in after:
                    line |= hook(number + 1, batch, line)
        finally:
            add_line(log, line) if log is not None else None

    return told


def whole_updates(
    numbers: range,
    save_every: int,
    run: Path,
    processes: Processes,
    interrupt: Interrupt,
    update_of: Callable[[int, Callable[[], None]], tuple[Batch, Line]],
    told: Callable[[int, Batch, Line], None],
    write: Callable[[int, Generators], None],
    memory: Callable[[], dict[str, Tensor]] = dict,
) -> None:
    """The updates one after another, with a checkpoint every `save_every`, at the end, and of the last whole
    one where something ends the run.

    `update_of` moves the weights, `told` writes down what came of it. Divided weights take all processes to
    be saved, so there a signal waits until they have ended an update.
    """
    done = saved = number = numbers.start
    generators = moved(memory)
    try:
        for number in numbers:
            batch, line = update_of(number, interrupt.hold)
            done, generators = number + 1, moved(memory)
            told(number, batch, line)
            generators = moved(memory)
            own = float(interrupt.pending or 0)
            came = processes.totals({"signal": own})["signal"] if interrupt.patient else 0.0
            if done % save_every == 0 or done == numbers.stop or came:
                write(done, generators)
                saved = done
            if came:
                raise Stopped(interrupt.pending or signal.SIGTERM)
            interrupt.release()
    except BaseException as error:
        whole = not interrupt.held or done > number  # not in the midst of an update
        if saved < done and whole and processes.main and not interrupt.patient:
            write(done, generators)
            saved = done
        signalled = error.number if isinstance(error, Stopped) else interrupt.pending
        if signalled is not None:
            raise Stopped(signalled, ended_by(signalled, run, saved) if processes.main else "") from None
        raise


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
        for epoch in range(settings.epochs if told else 0):  # no group tells anything: nothing moves
            optimizer.zero_grad(set_to_none=True)
            with processes.whole():
                sums = gradients(objective, batch, update, epoch)
                processes.sum_gradients(list(parameters.values()), objective.touched)
            given = [p for p in parameters.values() if p.grad is not None]
            if given:
                norm = float(full(nn.utils.clip_grad_norm_(given, settings.max_grad_norm)))
                if not math.isfinite(norm):
                    raise ValueError(f"the gradient of update {update + 1} is not finite; {unmoved(epoch)}")
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


def unmoved(epoch: int) -> str:
    """What an error in this step of an update has left of the weights."""
    return "the earlier steps of this update stand" if epoch else "nothing was changed by it"


def gradients(objective: Objective, batch: Batch, update: int, epoch: int) -> dict[str, float]:
    """Adds up the gradients of the batch's parts; their losses and metrics, summed."""
    sums = dict.fromkeys(("loss", *objective.summed), 0.0)
    for part in batch.parts:
        loss, metrics = objective.loss(part)
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss of update {update + 1} is {loss.item()}; {unmoved(epoch)}")
        loss.backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums

"""The training loop of the embedded models: cosine schedule, averaged weights, exact resume, a JSONL log."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from promptloop.swap import in_place, put


def command(doc: str | None, train: Callable[..., dict[str, float]]) -> None:
    """`python -m ... --out DIR --seed 0`: trains, and prints what came of it."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(train(args.out, seed=args.seed))


def fit(
    network: nn.Module,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    seed: int,
    folder: Path,
    warmup: int = 200,
    average: float = 0.9995,
    weight_decay: float = 0.01,
    log_every: int = 100,
    save_every: int = 500,
    check: Callable[[int], dict[str, float]] | None = None,
    check_every: int = 10**9,
) -> None:
    """Minimise ``loss_at(step)`` and leave the averaged weights in ``network``.

    ``loss_at`` must depend on ``seed`` and the step alone (it makes its own batch from them), so a run that
    was killed goes on from ``folder/state.pt`` exactly. ``check(step)`` is called with the averaged weights
    in place. Raises ``ValueError`` when ``folder`` holds a run with other settings.
    """
    run = {"steps": steps, "lr": lr, "seed": seed, "warmup": warmup, "average": average,
           "weight_decay": weight_decay}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = adam(trained, weight_decay, lr)
    averaged = {name: p.detach().clone() for name, p in trained.items()}
    state_file = folder / "state.pt"
    first, spent = restored(state_file, run, network, optimizer, averaged)
    cut(folder / "log.jsonl", first)
    began, recent = time.time() - spent, []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, lr, warmup)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        weight = 1 - min(average, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(averaged.values()), [p.detach() for p in trained.values()], weight)
        recent.append(loss.item())
        done = step + 1
        line: dict[str, float] = {}
        if done % log_every == 0 or done == steps:
            mean, seconds = sum(recent) / len(recent), time.time() - began
            line = {"step": done, "loss": round(mean, 5), "seconds": round(seconds, 1)}
            recent = []
        if check and (done % check_every == 0 or done == steps):
            with in_place(trained, averaged), torch.no_grad():
                line = {"step": done, **line, **check(done)}
        if line:
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
        if done % save_every == 0 or done == steps:
            save(state_file, run, network, optimizer, averaged, done, time.time() - began)
    put(trained, averaged)


def adam(trained: Mapping[str, Tensor], weight_decay: float, lr: float) -> torch.optim.AdamW:
    """The optimiser: only matrices decay."""
    decayed = [p for p in trained.values() if p.ndim > 1]
    rest = [p for p in trained.values() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def rate_at(step: int, steps: int, lr: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 2% of ``lr``."""
    return lr * min((step + 1) / warmup, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def save(
    file: Path,
    run: dict[str, float],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor],
    step: int,
    seconds: float,
) -> None:
    """Writes a checkpoint, whole or not at all."""
    state = {
        "run": run,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averaged": averaged,
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, f"{file}.part")
    os.replace(f"{file}.part", file)


def restored(
    file: Path,
    run: dict[str, float],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor],
) -> tuple[int, float]:
    """Puts the checkpoint in place, where there is one; its step and the seconds spent so far."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, weights_only=True, map_location="cpu")
    if state["run"] != run:
        other = ", ".join(f"{k} {v} (now {run[k]})" for k, v in state["run"].items() if v != run[k])
        raise ValueError(f"{file.parent} holds a run with {other}: give another --out, or remove that folder")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    put(averaged, state["averaged"])
    return state["step"], state["seconds"]


def cut(log: Path, step: int) -> None:
    """Drops the lines after ``step``: a run that goes on from there writes them again."""
    if log.exists():
        lines = log.read_text().splitlines(True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            part = log.with_suffix(".part")
            part.write_text("".join(kept))
            part.replace(log)

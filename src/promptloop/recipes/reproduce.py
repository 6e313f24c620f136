"""`promptloop reproduce`: trains what the claims need, measures every row, prints the tables.

Each row's scores are kept in a JSON file of their own with all that they depend on, so an interrupted run
goes on where it was, and a table can be printed again from the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptloop.bench.arms import measured
from promptloop.bench.paired import difference, interval
from promptloop.names import one_of
from promptloop.recipes import parts, runs
from promptloop.recipes.claims import CLAIMS, ROWS, TRAINED, Claim, Row
from promptloop.recipes.mini import mini
from promptloop.solvers import Scheduler, Solver
from promptloop.world import study
from promptloop.world.queries import TASKS, queries

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
QUICK, FULL = 35, 210  # held-out queries; both divide among the seven tasks
REWARDS = ("oracle", "oracle-strict", "preference")


def reproduce(
    claims: Sequence[str],
    out: Path,
    *,
    quick: bool = False,
    train: bool = False,
    progress: Progress | None = None,
    say: Say = print,
) -> str:
    """Measures the rows of `claims` (none given: all) into `out` and returns their tables.

    The policies are those that ship; with `train` they are trained first, into `out/policies`. `quick`
    measures one seed on few queries. ValueError for an unknown claim, and for a folder with rows of other
    settings.
    """
    chosen = [claim_named(name) for name in claims] or list(CLAIMS)
    if train:
        train_all(out / "policies", say=say)
    made = out / "policies" if train else None
    wanted = list(dict.fromkeys(row for name in chosen for row in CLAIMS[name].rows + pairs_of(name)))
    for name in wanted:  # what is missing is told before anything is measured
        if made is None and ROWS[name].policy in TRAINED and not (out / "rows" / f"{name}.json").exists():
            for seed in range(1 if quick else ROWS[name].seeds):
                study(str(ROWS[name].policy), seed)
    found: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(wanted):
        if progress is not None:
            progress(f"row {name}", k, len(wanted))
        found[name] = row(name, out, QUICK if quick else FULL, 1 if quick else None, made)
    text = "\n\n".join(table(name, CLAIMS[name], found) for name in chosen)
    (out / "tables.md").write_text(text + "\n", encoding="utf-8")
    return text


def pairs_of(claim: str) -> tuple[str, ...]:
    return tuple(name for pair in CLAIMS[claim].pairs for name in pair)


def claim_named(name: str) -> str:
    """The claim's own spelling; ValueError with the nearest for an unknown one."""
    known = {claim.lower(): claim for claim in CLAIMS}
    return known[one_of(name.lower(), known, "claim")]


# --- rows


def row(name: str, out: Path, count: int, seeds: int | None, policies: Path | None) -> dict[str, Any]:
    """The row's scores, from its file or measured now: {"scores": {reward: [S][Q]}, "cost": {...}}."""
    said = ROWS[name]
    settings = json.loads(json.dumps({**asdict(said), "queries": count, "seeds": seeds or said.seeds}))
    file = out / "rows" / f"{name}.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["settings"] == settings:
            return kept
        raise ValueError(f"{file} was measured with other settings; give another --out, or remove it")
    asked = [q.text for q in queries(count, 2, held_out=True)]
    scores: dict[str, list[list[float]]] = {reward: [] for reward in REWARDS}
    costs = []
    rewards = {reward: parts.reward(reward) for reward in REWARDS}
    for seed in range(settings["seeds"]):
        denoiser, policy, solver = loaded(said, seed, policies)
        made = measured(
            denoiser, policy, said.way, asked, rewards, seed=1_000_000 * (seed + 1), solver=solver
        )
        costs.append(made.cost)
        for reward in REWARDS:
            scores[reward].append([round(v, 4) for v in made.scores[reward].tolist()])
    cost = {key: sum(c[key] for c in costs) / len(costs) for key in costs[0]}
    kept = {"settings": settings, "scores": scores, "cost": cost}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(kept), encoding="utf-8")
    part.replace(file)
    return kept


def loaded(said: Row, seed: int, policies: Path | None) -> tuple[Any, Any, Solver | None]:
    """The row's denoiser, its policy (drafts are drawn at temperature 1, as in training) and its solver."""
    denoiser = parts.backbone(said.backbone, torch.device("cpu"), torch.bfloat16).value
    policy = None
    if said.policy is not None:
        if said.policy == "untrained":
            name = "mini-vlm"
        elif policies is not None:
            name = str(policies / f"{said.policy}-{seed}")
        else:
            name = str(study(said.policy, seed))
        policy = parts.chat_policy(parts.locate(name, "policy")[0], max_new_tokens=32)
    return denoiser, policy, solver_named(said.solver)


def solver_named(name: str) -> Solver | None:
    if not name:
        return None
    from diffusers import DPMSolverMultistepScheduler

    return Scheduler(
        DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    )


# --- trainings


def train_all(out: Path, *, only: Sequence[str] = (), say: Say = print, **overrides: Any) -> None:
    """Trains every policy of the claims into `out/NAME-SEED`, going on where an earlier call stopped."""
    for name, (settings, count) in TRAINED.items():
        for seed in range(count):
            folder = out / f"{name}-{seed}"
            if (only and folder.name not in only) or (folder / runs.POLICY).is_dir():
                continue
            begun = (folder / runs.CONFIG).exists()
            mini(replace(settings, seed=seed, **overrides), folder, resume=begun, say=say)


# --- tables


def tensor(found: dict[str, Any], reward: str) -> Tensor:
    return torch.tensor(found["scores"][reward])


def table(name: str, claim: Claim, found: dict[str, dict[str, Any]]) -> str:
    """One claim in Markdown: its rows, their costs, the differences it is read from."""
    lines = [f"### {name}. {claim.title}", "",
             "| | soft | strict | learned reward | denoiser calls | tokens | kept | seconds |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for key in claim.rows:
        cost = found[key]["cost"]
        soft, strict, other = (interval(tensor(found[key], reward)) for reward in REWARDS)
        lines.append(
            f"| {ROWS[key].title} | {soft} | {strict} | {other.mean:.3f} | {cost['denoiser calls']:.0f} "
            f"| {cost['policy tokens']:.1f} | {cost['kept']:.2f} | {cost['seconds']:.2f} |"
        )
    if claim.pairs:
        lines += ["", "| difference | soft | strict |", "|---|---|---|"]
    for first, second in claim.pairs:
        cells = " | ".join(paired(found[first], found[second], reward) for reward in REWARDS[:2])
        lines.append(f"| {ROWS[first].title} - {ROWS[second].title} | {cells} |")
    return "\n".join(lines)


def paired(first: dict[str, Any], second: dict[str, Any], reward: str) -> str:
    """The difference over the seeds that both have."""
    a, b = tensor(first, reward), tensor(second, reward)
    count = min(len(a), len(b))
    return str(difference(a[:count], b[:count]))


def tasks(found: dict[str, dict[str, Any]], names: Sequence[str]) -> str:
    """Soft scores by task, one row each."""
    lines = ["| | " + " | ".join(TASKS) + " |", "|---" * (len(TASKS) + 1) + "|"]
    for name in names:
        scores = tensor(found[name], "oracle").mean(0)
        cells = [f"{scores[k :: len(TASKS)].mean():.2f}" for k in range(len(TASKS))]
        lines.append(f"| {ROWS[name].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

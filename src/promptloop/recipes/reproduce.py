"""`promptloop reproduce`: trains what the claims need, measures every row, prints the tables.

Each row's scores are kept in a JSON file of their own with all that they depend on, so an interrupted run
goes on where it was, and a table can be printed again from the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptloop.bench.arms import Found, Way, measured
from promptloop.bench.history import over_training
from promptloop.bench.paired import difference, interval
from promptloop.recipes import parts, runs
from promptloop.recipes.claims import CLAIMS, ROWS, SHIPPED, TRAINED, TUNED, Claim, Row
from promptloop.recipes.grpo import grpo
from promptloop.recipes.mini_dpo import mini_dpo
from promptloop.recipes.places import writable
from promptloop.recipes.progress import Progress
from promptloop.recipes.rows import REWARDS, digests, kept, noise_of, over_seeds
from promptloop.recipes.titles import STUDIES, claim_named
from promptloop.solvers import Scheduler, Solver
from promptloop.world import study
from promptloop.world.queries import TASKS

Say = Callable[[str], None]
QUICK, FULL = 35, 210  # held-out queries; both divide among the seven tasks
OURS = {"rows", "policies", "tables.md", *STUDIES, *(f"{name}.md" for name in STUDIES)}  # what it writes


def reproduce(
    claims: Sequence[str],
    out: Path,
    *,
    quick: bool = False,
    train: bool = False,
    progress: Progress | None = None,
    say: Say = print,
) -> str:
    """Measures the rows of `claims` into `out` and returns their tables.

    No claims given: all whose policies there are; `say` names the others. The policies are those that ship;
    with `train` they are trained first, into `out/policies`. `quick` measures one seed on few queries.
    ValueError for an unknown claim, for one whose policies are missing, and for a folder with rows of other
    settings or weights.
    """
    foreign = sorted(f.name for f in out.iterdir() if f.name not in OURS) if writable(out).is_dir() else []
    if foreign:
        raise ValueError(f"{out} holds {foreign[0]!r}, which reproduce did not write; give another folder")
    count, seeds = (QUICK, 1) if quick else (FULL, None)
    chosen = [claim_named(name) for name in claims]
    made = out / "policies" if train else None
    if made is not None:
        train_all(made, needed(chosen or list(CLAIMS)), progress=progress, say=say)
    if not chosen:
        lacking = {name: missing(name, seeds, made) for name in CLAIMS}
        chosen = [name for name, what in lacking.items() if not what]
        for name, what in lacking.items():
            if what:
                say(f"{name} is left out: {what}")
    for name in chosen:  # told before anything is measured
        if what := missing(name, seeds, made):
            raise ValueError(f"{name} cannot be measured: {what}")
    wanted = list(dict.fromkeys(row for name in chosen for row in rows_of(name)))
    found: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(wanted):
        if progress is not None:
            progress(f"measuring: {ROWS[name].title}", k, len(wanted))
        found[name] = row(name, out, count, seeds, made)
    tables = [table(name, CLAIMS[name], found) + histories(CLAIMS[name], made) for name in chosen]
    text = "\n\n".join([*tables, tasks(found, wanted)])
    (out / "tables.md").write_text(text + "\n", encoding="utf-8")
    return text


def rows_of(claim: str) -> tuple[str, ...]:
    return CLAIMS[claim].rows + tuple(name for pair in CLAIMS[claim].pairs for name in pair)


def missing(claim: str, seeds: int | None, policies: Path | None) -> str:
    """Why the claim cannot be measured; "" where it can."""
    try:
        for name in rows_of(claim):
            weights_of(ROWS[name], seeds or ROWS[name].seeds, policies)
    except ValueError as error:
        return str(error)
    return ""


# --- rows


def row(name: str, out: Path, count: int, seeds: int | None, policies: Path | None) -> dict[str, Any]:
    """The row's scores, from its file or measured now: {"scores": {reward: [S][Q]}, "cost": {...}}."""
    said, settings = ROWS[name], settings_of(name, count, seeds, policies)

    def run(k: int, asked: Sequence[str], rewards: dict[str, Any]) -> Found:
        denoiser, policy, solver = loaded(said, k, policies)
        return measured(denoiser, policy, said.way, asked, rewards, seed=noise_of(k), solver=solver)

    def newer(then: dict[str, Any]) -> dict[str, Any]:
        return {**then, "way": asdict(Way()) | then["way"]}

    def measure() -> dict[str, Any]:
        return over_seeds(count, settings["seeds"], run)[0]

    return kept(out / "rows" / f"{name}.json", settings, measure, newer)


def settings_of(name: str, count: int, seeds: int | None, policies: Path | None) -> dict[str, Any]:
    """All that a row's scores depend on."""
    said = ROWS[name]
    told = {name: value for name, value in asdict(said).items() if name != "title"}
    weights = weights_of(said, seeds or said.seeds, policies)
    settings = {**told, "queries": count, "seeds": seeds or said.seeds, "weights": weights}
    return json.loads(json.dumps(settings))


def weights_of(said: Row, seeds: int, policies: Path | None) -> list[str]:
    """The digests of the row's backbone and policies, and of who scores; ValueError where one is missing."""
    used = [(named(said.backbone, 0, policies), "backbone")]
    if said.policy is not None:
        trained = range(seeds if said.policy in TRAINED else 1)
        used += [(named(said.policy, seed, policies), "policy") for seed in trained]
    return digests(used)


def named(name: str, seed: int, policies: Path | None) -> str:
    """The folder of what was trained, or the embedded model's name."""
    if name in TRAINED or name in TUNED:
        return str(study(name, seed) if policies is None else policies / f"{name}-{seed}")
    return "mini-vlm" if name == "untrained" else name


def loaded(said: Row, seed: int, policies: Path | None) -> tuple[Any, Any, Solver | None]:
    """The row's denoiser, its policy (greedy, as in `promptloop generate`) and its solver."""
    backbone = named(said.backbone, 0, policies)
    denoiser = parts.backbone(backbone, torch.device("cpu"), torch.bfloat16).value
    policy = None
    if said.policy is not None:
        folder = parts.locate(named(said.policy, seed, policies), "policy")[0]
        policy = parts.chat_policy(folder, temperature=0.0)
    return denoiser, policy, solver_named(said.solver)


def solver_named(name: str) -> Solver | None:
    if not name:
        return None
    from diffusers import DPMSolverMultistepScheduler

    return Scheduler(
        DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    )


# --- trainings


def needed(claims: Sequence[str]) -> set[str]:
    """What the rows of `claims` were trained as, and what tuned backbones were refined by."""
    rows = [ROWS[name] for claim in claims for name in rows_of(claim)]
    names = {row.backbone for row in rows} & set(TUNED)
    names |= {SHIPPED for _ in names} | {row.policy for row in rows if row.policy in TRAINED}
    return names | {TRAINED[name][0].first for name in names & set(TRAINED)} - {"none"}


def train_all(
    out: Path, names: Collection[str], *, progress: Progress | None = None, say: Say = print
) -> None:
    """Trains the policies and backbones `names` into `out/NAME-SEED`, going on where it was stopped."""

    def told(folder: Path) -> Progress | None:
        return progress and (lambda what, done, of: progress(f"{folder.name}, {what}", done, of))

    for name, (settings, count) in TRAINED.items():
        for seed in range(count if name in names else 0):
            folder = out / f"{name}-{seed}"
            if (folder / runs.POLICY).is_dir():
                continue
            begun, first = (folder / runs.CONFIG).exists(), settings.first
            first = str(out / f"{first}-{seed}") if first in TRAINED else first
            grpo(
                replace(settings, seed=seed, first=first),
                folder,
                resume=begun,
                progress=told(folder),
                say=say,
            )
    for name, tuning in TUNED.items():
        folder = out / f"{name}-0"
        if name in names and not (folder / runs.BACKBONE).is_dir():
            tuning = replace(tuning, policy=str(out / f"{SHIPPED}-0"))
            begun = (folder / runs.CONFIG).exists()
            mini_dpo(tuning, folder, resume=begun, progress=told(folder), say=say)


# --- tables


def tensor(found: dict[str, Any], reward: str) -> Tensor:
    return torch.tensor(found["scores"][reward])


def table(name: str, claim: Claim, found: dict[str, dict[str, Any]]) -> str:
    """One claim in Markdown: its rows, their costs, the differences it is read from.

    A difference is over the runs (a training and its noise, or noise alone) that both rows have.
    """
    lines = [f"### {name}. {claim.title}", "",
             "| | runs | soft | strict | learned reward | denoiser calls | tokens | kept | seconds |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for key in claim.rows:
        cost = found[key]["cost"]
        soft, strict, other = (interval(tensor(found[key], reward)) for reward in REWARDS)
        count = len(found[key]["scores"]["oracle"])
        lines.append(
            f"| {ROWS[key].title} | {count} | {soft} | {strict} | {other.mean:.3f} "
            f"| {cost['denoiser calls']:.0f} | {cost['policy tokens']:.1f} | {cost['kept']:.2f} "
            f"| {cost['seconds']:.2f}{times(claim, key, found)} |"
        )
    if claim.pairs:
        lines += ["", "| difference | runs | soft | strict |", "|---|---|---|---|"]
    for first, second in claim.pairs:
        both = min(len(found[name]["scores"]["oracle"]) for name in (first, second))
        pairs = [[tensor(found[name], reward)[:both] for name in (first, second)] for reward in REWARDS[:2]]
        cells = " | ".join(str(difference(*pair)) for pair in pairs)
        lines.append(f"| {ROWS[first].title} - {ROWS[second].title} | {both} | {cells} |")
    return "\n".join(lines)


def histories(claim: Claim, policies: Path | None) -> str:
    """The trained reward and the gold over the claim's trainings, by quarters."""
    if not claim.histories:
        return ""
    lines = ["", "", "| over training, by quarters | trained on | its mean | gold | its mean |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name in claim.histories:
        folder = Path(named(name, 0, policies))
        log = folder / ("training_log.jsonl" if policies is None else runs.METRICS)
        told = over_training([json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()])
        trained = TRAINED[name][0] if name in TRAINED else TUNED[name]
        rewards, golds = (" to ".join(f"{pair[k]:.3f}" for pair in told) for k in range(2))
        lines.append(f"| {name} | {trained.reward} | {rewards} | {trained.gold} | {golds} |")
    return "\n".join(lines)


def times(claim: Claim, key: str, found: dict[str, dict[str, Any]]) -> str:
    """How many times the seconds of the claim's first row, where that is the query on the same backbone."""
    first = claim.rows[0]
    if ROWS[first].policy is not None or len({ROWS[name].backbone for name in claim.rows}) > 1:
        return ""
    return f" ({found[key]['cost']['seconds'] / found[first]['cost']['seconds']:.1f}x)"


def tasks(found: dict[str, dict[str, Any]], names: Sequence[str]) -> str:
    """Soft scores by task, one row each."""
    lines = ["### Soft score by task", "", "| | " + " | ".join(TASKS) + " |", "|---" * (len(TASKS) + 1) + "|"]
    for name in names:
        scores = tensor(found[name], "oracle").mean(0)
        cells = [f"{scores[k :: len(TASKS)].mean():.2f}" for k in range(len(TASKS))]
        lines.append(f"| {ROWS[name].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

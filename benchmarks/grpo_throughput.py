"""Episodes a second of `promptloop train mini` against a naive trainer, in the same run, phase by phase.

    OMP_NUM_THREADS=2 python benchmarks/grpo_throughput.py [--repeats 3] [--naive-queries 2]

The naive trainer is what one writes first: one episode at a time, one draft at a time, the whole prompt read
anew for every draft, prompts embedded anew for every episode, old log-probs computed again before the
update, one draft in each backward pass. Both sides have the same weights, LoRA, backbone, number of steps
and dtype; only batching and reuse differ. The naive side makes fewer groups, since an episode of its costs
the same however many there are; the last two phases count the episodes that are trained on. Sides alternate;
seconds for an episode are medians over the repeats. Wanted: at least 3 times as many episodes a second.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import replace

import torch

from promptloop.objectives.contract import Share
from promptloop.objectives.prompts import PromptGRPO
from promptloop.processes import Processes
from promptloop.recipes.embedded import mini
from promptloop.recipes.grpo import objective_of
from promptloop.recipes.rewards import reward_named
from promptloop.timing import Stopwatch

TRAINED = ("old log-probs", "update")  # phases that see only the episodes of groups that differ
PHASES = ("policy", "denoiser", "decode", "reward", *TRAINED)


def naive(objective: PromptGRPO, queries: int) -> PromptGRPO:
    """The same training, one thing at a time."""
    return replace(
        objective,
        policy=replace(objective.policy, reuse=False),
        geometry=replace(objective.geometry, queries=queries, max_batch=1),
        queries=lambda update: objective.queries(update)[:queries],
        micro_batch=1,
        recompute=True,
    )


def update(objective: PromptGRPO, number: int) -> dict[str, float]:
    """Seconds for an episode of one update (without the optimiser's step), by phase."""
    batch = objective.collect(number, Share())
    watch = Stopwatch()
    with watch("update"):
        for part in batch.parts:
            objective.loss(part)[0].backward()
    objective.policy.network.zero_grad(set_to_none=True)
    seconds = {**batch.seconds, **watch.seconds}
    episodes = objective.geometry.episodes
    trained = (
        sum(len(part.drafts) for part in batch.parts) / objective.geometry.refinements
    )  # some groups drop
    per = {phase: max(trained, 1) if phase in TRAINED else episodes for phase in PHASES}
    return {phase: seconds.get(phase, 0.0) / per[phase] for phase in PHASES}


def medians(sides: Mapping[str, PromptGRPO], repeats: int) -> dict[str, dict[str, float]]:
    """Of each side, the medians of `repeats` updates, and "all", their sum. Sides alternate after one update
    each that is not timed.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for side in sides.values():
        update(side, 0)
    for repeat in range(repeats):
        for name in sorted(sides, reverse=bool(repeat % 2)):
            found[name].append(update(sides[name], repeat + 1))
    middle = {
        name: {phase: statistics.median(run[phase] for run in runs) for phase in PHASES}
        for name, runs in found.items()
    }
    return {name: phases | {"all": sum(phases.values())} for name, phases in middle.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-queries", type=int, default=2, help="groups in the naive trainer's update")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = mini(refinements=5)
    ours = objective_of(settings, reward_named(settings.reward), torch.device("cpu"), Processes())
    sides = {"ours": ours, "naive": naive(ours, args.naive_queries)}
    found = medians(sides, args.repeats)
    print(f"seconds for an episode, {args.threads} threads, {settings.refinements} refinements, "
          f"{settings.denoising_steps} steps, median of {args.repeats}")  # fmt: skip
    print(f"{'':>14} {'ours':>9} {'naive':>9} {'ratio':>7}")
    for phase in (*PHASES, "all"):
        a, b = (found[name][phase] for name in ("ours", "naive"))
        print(f"{phase:>14} {a:9.4f} {b:9.4f} " + (f"{b / a:7.2f}" if a > 1e-4 else "      -"))


if __name__ == "__main__":
    main()

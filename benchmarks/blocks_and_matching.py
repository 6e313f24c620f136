"""What UniCoDe and Doob's matching gain on mini-turbo, by the learned reward and the oracle's: docs/methods.

    OMP_NUM_THREADS=1 python benchmarks/blocks_and_matching.py

UniCoDe: 8 held-out queries, 3 noises of each, 4 streams in blocks of 2 steps, for a few scales of its push.
Doob's matching: log h of one query from 256 images, and 16 others made with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from promptloop.bench.paired import interval
from promptloop.controls import DoobMatching, UniCoDe
from promptloop.controls.matching import matched
from promptloop.denoisers import load
from promptloop.ledger import Ledger
from promptloop.recipes.rewards import reward_named
from promptloop.sample import sample
from promptloop.solvers import DDIM
from promptloop.world.queries import held_out

STEPS, NOISES, FIRST = 8, 3, 5_000_000  # FIRST: a seed that no choice was made with
QUERY = "two jade stars right of a golden disc"
REWARDS = {"learned": reward_named("preference"), "soft": reward_named("oracle")}


def told(name: str, values: dict[str, Tensor], plain: dict[str, Tensor], ledger: Ledger) -> None:
    """A row of a Markdown table: means, and the oracle's less the plain run's with its interval."""
    gain = (values["soft"] - plain["soft"]).reshape(NOISES, -1) if plain is not values else None
    against = "" if gain is None else interval(gain)
    many = len(values["soft"])
    print(f"| {name} | {ledger.evaluations / many:.0f} | {values['learned'].mean():.3f} | "
          f"{values['soft'].mean():.3f} | {against} |", flush=True)  # fmt: skip


def blocks(denoiser: Any) -> None:
    queries = held_out(8) * NOISES
    seeds = [FIRST + i for i in range(len(queries))]
    options: dict[str, Any] = {"seeds": seeds, "steps": STEPS, "solver": DDIM(1.0)}
    plain: dict[str, Tensor] = {}
    controls = {"the query": [], "best of 4 (one block)": [UniCoDe(REWARDS["learned"], 4, STEPS, scale=0)]}
    controls |= {
        f"scale {scale:g}": [UniCoDe(REWARDS["learned"], 4, 2, scale=scale)] for scale in (0, 0.05, 0.1)
    }
    for name, given in controls.items():
        made = sample(denoiser, queries, controls=given, **options)
        values = {kind: reward(made.images, queries) for kind, reward in REWARDS.items()}
        plain = plain or values
        told(name, values, plain, made.ledger)


def matching(denoiser: Any) -> None:
    fitted = matched(denoiser, REWARDS["learned"], [QUERY] * 256, seeds=[*range(FIRST, FIRST + 256)],
                     strength=1.0, steps=STEPS, rounds=500, batch=64, rate=3e-3, max_batch=64)  # fmt: skip
    prompts = [QUERY] * 24
    options: dict[str, Any] = {"seeds": [FIRST + 1000 + i for i in range(24)], "steps": STEPS}
    plain: dict[str, Tensor] = {}
    for scale in (0.0, 1.0, 4.0):
        made = sample(denoiser, prompts, controls=[DoobMatching(fitted, scale)], **options)
        values = {kind: reward(made.images, prompts) for kind, reward in REWARDS.items()}
        plain = plain or values
        told(f"log h, scale {scale:g}", values, plain, made.ledger)


def main() -> None:
    torch.set_num_threads(1)
    denoiser = load("mini-turbo")
    for part in denoiser.modules:
        part.requires_grad_(False)
    print("| | evaluations | learned reward | soft | soft, less the first row's |\n|---|---|---|---|---|")
    blocks(denoiser)
    matching(denoiser)


if __name__ == "__main__":
    main()

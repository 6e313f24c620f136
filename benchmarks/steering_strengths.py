"""How strong to steer: settings of a method on training queries, as mean scores and cost for an image.

    OMP_NUM_THREADS=1 python benchmarks/steering_strengths.py [CONTROL ...]

Each argument is one row: controls as on the command line, with spaces between several. Without arguments the
rows that the strengths of `promptloop reproduce steering` were chosen from. mini-turbo, 14 training queries.
"""

from __future__ import annotations

import sys

import torch

from promptloop.bench.arms import measured
from promptloop.denoisers import load
from promptloop.recipes.claims import EIGHT
from promptloop.recipes.rewards import reward_named
from promptloop.recipes.rows import REWARDS
from promptloop.recipes.steering import steering
from promptloop.world.queries import queries

QUERIES, QUERY_SEED, NOISE = 14, 5, 77
FK = "fk:reward=preference,particles=4,pick=best"
DAS = "das:reward=preference,particles=2,pick=best"
GRADIENT = "reward-gradient:reward=preference"
ROWS = (
    "",
    f"{FK},every=2,strength=2",
    f"{FK},every=2,strength=10",
    f"{FK},every=1,strength=5",
    f"{DAS},strength=2",
    f"{DAS},strength=10",
    f"{GRADIENT},scale=2 recurrence:times=4",
    f"{GRADIENT},scale=10 recurrence:times=4",
    f"{GRADIENT},scale=0.2,relative=true recurrence:times=4",
)


def main() -> None:
    torch.set_num_threads(1)
    asked = [query.text for query in queries(QUERIES, QUERY_SEED, held_out=False)]
    denoiser = load("mini-turbo", dtype=torch.bfloat16)
    rewards = {name: reward_named(name) for name in REWARDS}
    for said in sys.argv[1:] or ROWS:
        by = steering(said.split(), "", denoiser, "cpu")
        made = measured(denoiser, None, EIGHT, asked, rewards, seed=NOISE, solver=by.solver,
                        steered=by.controls, run=by.sample)  # fmt: skip
        scores = ", ".join(f"{name} {values.mean():.3f}" for name, values in made.scores.items())
        cost = made.cost
        print(f"{said or 'nothing'}: {scores}; evaluations {cost['denoiser calls']:.0f}, backward passes "
              f"{cost['backward passes']:.0f}, rewards {cost['reward calls']:.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

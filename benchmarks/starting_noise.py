"""What searching the starting noise gains on mini-turbo, and its cost: best of n, zero order, ReNO, FIND.

    python benchmarks/starting_noise.py --queries 8

By a differentiable reward (how warm the image is), then by the oracle, a black box. For FIND also the mean
reward of fresh noises, unit ones and those of the tuned law: the law is what it learns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from promptloop.controls import BestOf
from promptloop.controls.noise_law import find
from promptloop.controls.optimised import carinox, reno
from promptloop.controls.search import zero_order
from promptloop.denoisers import load
from promptloop.rewards.composite import Weighted
from promptloop.sample import Sample, sample
from promptloop.world.oracle import OracleReward
from promptloop.world.queries import held_out

STEPS, FRESH = 4, 4


def warm(images: Tensor, queries: Sequence[str]) -> Tensor:
    """Red minus blue."""
    return (images[:, 0] - images[:, 2]).mean((1, 2))


warm.differentiable = True  # type: ignore[attr-defined]
LOUD = Weighted({"warm": (100.0, warm)})  # its gradient is bounded; as it is, it is shorter than the bound
oracle: Any = OracleReward()


def told(name: str, made: Sample, reward: Callable[..., Tensor]) -> None:
    """One line: reward, oracle score, root mean square of the noise, cost a sample."""
    assert made.images is not None
    queries, ledger, many = made.state.queries, made.ledger, len(made.state)
    noise = made.state.memory.get("start")
    size = float("nan") if noise is None else float(noise.pow(2).mean().sqrt())
    print(
        f"{name:28s} reward {float(reward(made.images, queries).mean()):.3f}  "
        f"oracle {float(oracle(made.images, queries).mean()):.3f}  rms of noise {size:.3f}  "
        f"evaluations {ledger.evaluations // many}  backwards {ledger.backwards // many}  "
        f"rewards {ledger.rewards // many}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--queries", type=int, default=8)
    prompts = held_out(parser.parse_args().queries)
    denoiser, seeds = load("mini-turbo"), [*range(len(prompts))]
    for part in denoiser.modules:
        part.requires_grad_(False)
    run: dict[str, Any] = {"seeds": seeds, "steps": STEPS}

    def best_of(reward: Any, n: int) -> Sample:
        return sample(denoiser, prompts, controls=[BestOf(reward, of=n)], **run)

    told("plain", sample(denoiser, prompts, **run), warm)
    told("best of 13", best_of(warm, 13), warm)
    told("zero order, 6 x 2", zero_order(denoiser, prompts, reward=warm, rounds=6, **run), warm)
    for name, reward, n in (("as it is, 4", warm, 4), ("4", LOUD, 4), ("16", LOUD, 16)):
        told(f"ReNO, {name}", reno(denoiser, prompts, reward=reward, iterations=n, **run), warm)
    settings: dict[str, Any] = {"reward": LOUD, "iterations": 4, "apart": False}
    told("CARINOX, 1 of 5, 4", carinox(denoiser, prompts, starts=5, kept=1, **settings, **run), warm)
    told("oracle: best of 41", best_of(oracle, 41), oracle)
    told("oracle: zero order, 20 x 2", zero_order(denoiser, prompts, reward=oracle, rounds=20, **run), oracle)
    for name, reward, n, kl in (("oracle", oracle, 10, 1e-3), ("warm", warm, 40, 1e-5)):
        made = find(denoiser, prompts, reward=reward, iterations=n, pairs=2, kl_weight=kl, **run)
        told(f"{name}: FIND, {n} x 2 pairs", made, reward)
        law, scores = made.state.memory, []
        for k in range(FRESH):
            unit = denoiser.noise([1000 + k * len(prompts) + seed for seed in seeds])
            for noise in (unit, law["mean"] + law["std"] * unit):
                images = sample(denoiser, prompts, noise=noise, **run).images
                assert images is not None
                scores.append(reward(images, prompts).mean())
        before, after = torch.stack(scores).view(FRESH, 2).mean(0).tolist()
        print(f"{name}, fresh noises: unit {before:.3f}, of the law {after:.3f}", flush=True)


if __name__ == "__main__":
    main()

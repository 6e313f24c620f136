"""How far the embedded world's learned reward (`preference`) agrees with the oracle, on scenes and on images.

    OMP_NUM_THREADS=1 python benchmarks/world_rewards.py --seed 0   # docs/rewards_learned.md

Rendered: fresh pairs of scenes as it was trained on; and for each held-out query one scene that it describes
and seven that are ever farther from it. Backbones: eight images of each held-out query. Rank correlation is
Spearman's among the images of one query, ties shared, mean over the queries at which the oracle sees any
difference; pairs are those of one query that the oracle tells apart by more than 0.1. All but mini-turbo are
guided by 5.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor

from promptloop.bench.paired import interval
from promptloop.controls import CFG
from promptloop.denoisers import load
from promptloop.recipes.rewards import reward_named
from promptloop.rewards.contract import scored
from promptloop.sample import sample
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import describe
from promptloop.world.judge import changed, pair
from promptloop.world.lessons import user_says
from promptloop.world.queries import held_out
from promptloop.world.scene import Scene, random_scene

EACH, BATCH, CLEAR = 8, 40, 0.1
STEPS = {"mini-turbo": 8, "mini-unet": 20, "mini-flow": 20}


def both(images: Tensor, queries: Sequence[str]) -> tuple[Tensor, Tensor]:
    """[N] of the learned reward and of the oracle."""
    rows = [(images[k : k + BATCH], queries[k : k + BATCH]) for k in range(0, len(queries), BATCH)]
    judge, gold = reward_named("preference"), reward_named("oracle")
    with torch.no_grad():
        found, told = (torch.cat([scored(reward, *row) for row in rows]) for reward in (judge, gold))
    return found, told


def pairs(count: int, seed: int) -> str:
    """The share of fresh pairs at which the learned reward prefers what the oracle does."""
    made = [pair(seed, f"fresh/{k}") for k in range(count)]
    texts = [text for text, *_ in made]
    shown: list[list[Scene]] = [[first for *_, first, _ in made], [second for *_, second in made]]
    sides = [both(pixels(scenes) * 0.5 + 0.5, texts) for scenes in shown]
    ours, gold = (sides[0][k] - sides[1][k] for k in (0, 1))
    cells = []
    for least in (0.02, CLEAR):
        told = gold.abs() > least
        right = interval(((ours > 0) == (gold > 0))[told].double()[None])
        cells.append(f"{right} of {int(told.sum())} apart by more than {least}")
    return "; ".join(cells)


def ladder(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """For each query a scene that it describes, and seven with ever more changed."""
    rng, scenes, texts = random.Random(f"{seed}/ladder"), [], []
    for _ in range(count):
        scene = random_scene(rng)
        texts += [user_says(describe(scene, rng, dense=0.6), rng)] * EACH
        for _ in range(EACH):
            scenes.append(scene)
            scene = changed(scene, rng)
    return pixels(scenes) * 0.5 + 0.5, texts


def images_of(backbone: str, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """EACH images of each held-out query."""
    texts = [text for text in held_out(count, seed) for _ in range(EACH)]
    denoiser, found = load(backbone), []
    for k in range(0, len(texts), BATCH):
        part = texts[k : k + BATCH]
        seeds = [*range(seed * 10**6 + k, seed * 10**6 + k + len(part))]
        controls = [] if backbone == "mini-turbo" else [CFG(5.0)]
        made = sample(denoiser, part, seeds=seeds, steps=STEPS[backbone], controls=controls).images
        assert made is not None
        found.append(made.float())
    return torch.cat(found), texts


def agreement(ours: Tensor, gold: Tensor) -> str:
    """Cells: rank correlation within a query, of how many queries, pairs right, the best one's oracle."""
    ours, gold = ours.view(-1, EACH), gold.view(-1, EACH)
    some = [k for k in range(len(gold)) if float(gold[k].max() - gold[k].min()) > 0]
    ranks = torch.tensor([spearmanr(ours[k], gold[k]).statistic for k in some])
    first, second = torch.triu_indices(EACH, EACH, 1)
    apart, wanted = ours[:, first] - ours[:, second], gold[:, first] - gold[:, second]
    told = wanted.abs() > CLEAR
    right = float(((apart > 0) == (wanted > 0))[told].double().mean())
    best = gold.gather(1, ours.argmax(1, keepdim=True)).mean()
    whole = spearmanr(ours.flatten(), gold.flatten()).statistic
    pair_cell = f"{right:.3f} of {int(told.sum())}"
    return (f"{interval(ranks[None])} | {len(some)} of {len(gold)} | {whole:.3f} | {pair_cell} | "
            f"{gold.mean():.3f}, {best:.3f}, {gold.amax(1).mean():.3f}")  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=40)
    args = parser.parse_args()
    print(f"pairs: {pairs(args.pairs, args.seed)}\n", flush=True)
    print("| images | rank correlation in a query | queries | over all | pairs right | "
          "oracle: mean, preferred, best |\n|---|---|---|---|---|---|")  # fmt: skip
    print(f"| rendered | {agreement(*both(*ladder(args.queries, args.seed)))} |", flush=True)
    for backbone in STEPS:
        made = images_of(backbone, args.queries, args.seed)
        print(f"| {backbone}, {STEPS[backbone]} steps | {agreement(*both(*made))} |", flush=True)


if __name__ == "__main__":
    main()

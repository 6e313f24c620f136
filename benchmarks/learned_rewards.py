"""What rewards learned from choices are worth on held-out queries: how they agree with the oracle, and what
their use does to images. docs/rewards_training.md has the numbers.

    OMP_NUM_THREADS=1 python benchmarks/learned_rewards.py agreement --out held NAME=REWARD...
    OMP_NUM_THREADS=1 python benchmarks/learned_rewards.py use --backbone mini-turbo NAME=REWARD...
    OMP_NUM_THREADS=1 python benchmarks/learned_rewards.py sheet --out sheet.png NAME=REWARD...

agreement: 105 held-out queries, two images of each of four members (drawn into --out, which is read again);
the share of pairs ordered as the oracle does, in all and by aspect, the first reward's taken off it, and the
rank correlation within a query. use: 42 held-out queries, three noises of each; the best of 8 by each reward,
and its gradient. sheet: pictures of 8 queries without steering, then for each reward and strength of its
gradient.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from scipy.stats import spearmanr
from torch import Tensor

from promptloop.bench.paired import difference, interval
from promptloop.controls import CFG, BestOf, RewardGradient
from promptloop.denoisers import load
from promptloop.recipes import gallery
from promptloop.recipes.images import read
from promptloop.recipes.rewards import reward_named
from promptloop.recipes.usual import usual
from promptloop.rewards.rows import bitmaps
from promptloop.sample import sample
from promptloop.world.queries import held_out

MEMBERS = "mini-turbo,mini-turbo+mini-policy,mini-unet,mini-flow"
ASPECTS = {"all": "oracle", "attributes": "oracle-attributes", "spatial": "oracle-spatial",
           "count": "oracle-count"}  # fmt: skip
ALIKE = 0.02
SEED = 9_001  # one that nothing was trained or chosen with
NOISES, FIRST = 3, 9_000_000


def scores(reward: Any, images: Tensor, prompts: list[str]) -> Tensor:
    with torch.no_grad():
        return torch.cat([torch.as_tensor(reward(images[k : k + 100], prompts[k : k + 100])).float()
                          for k in range(0, len(prompts), 100)])  # fmt: skip


def by_query(values: Tensor, gold: Tensor, groups: list[list[int]], tell: Callable[..., float]) -> Tensor:
    """[1, Q] of `tell` for the queries whose images the oracle tells apart."""
    found = [tell(values[g], gold[g]) for g in groups if float(gold[g].max() - gold[g].min()) > ALIKE]
    return torch.tensor([found])


def ordered(values: Tensor, gold: Tensor) -> float:
    """Share of the pairs that differ in `gold` which `values` orders alike; a tie is half."""
    pairs = [(a, b) for a, b in combinations(range(len(gold)), 2) if abs(float(gold[a] - gold[b])) > ALIKE]
    return sum(float(0.5 + 0.5 * ((values[a] - values[b]).sign() * (gold[a] - gold[b]).sign()))
               for a, b in pairs) / len(pairs)  # fmt: skip


def ranked(values: Tensor, gold: Tensor) -> float:
    return float(spearmanr(values, gold).statistic) if float(values.max() - values.min()) > 0 else 0.0


def agreement(named: dict[str, Any], out: Path) -> None:
    who = gallery.members(MEMBERS)
    there = (out / gallery.LIST).is_file()
    shown = gallery.there(out) if there else gallery.draw(
        out, held_out(105), who, 2, seed=SEED, device=torch.device("cpu")
    )  # fmt: skip
    images, prompts = torch.stack([read(p.file) for p in shown]), [p.prompt for p in shown]
    groups = [[k for k, p in enumerate(prompts) if p == query] for query in dict.fromkeys(prompts)]
    gold = {aspect: scores(reward_named(name), images, prompts) for aspect, name in ASPECTS.items()}
    first: Tensor | None = None
    print(f"| reward | {' | '.join(f'pairs right, {a}' for a in ASPECTS)} | all, less the first's | rank |")
    print("|---|" + "---|" * (len(ASPECTS) + 2))
    for name, reward in named.items():
        values = scores(reward, images, prompts)
        right = [by_query(values, own, groups, ordered) for own in gold.values()]
        first = right[0] if first is None else first
        told = [*map(interval, right), difference(right[0], first)]
        correlated = interval(by_query(values, gold["all"], groups, ranked))
        print(f"| {name} | {' | '.join(map(str, told))} | {correlated} |", flush=True)


def use(named: dict[str, Any], backbone: str, strengths: list[float]) -> None:
    denoiser, its = load_frozen(backbone), usual(backbone)
    queries = held_out(42) * NOISES
    options: dict[str, Any] = {"seeds": [FIRST + k for k in range(len(queries))], "steps": its.steps,
                               "max_batch": 24}  # fmt: skip
    judges = {"soft": reward_named("oracle"), "strict": reward_named("oracle-strict")}
    heads = [*named, "soft", "soft, less the query's", "strict"]
    print(f"| steered by | {' | '.join(heads)} |\n|---|" + "---|" * len(heads))
    plain: Tensor | None = None

    def row(name: str, *controls: Any) -> None:
        nonlocal plain
        end = sample(denoiser, queries, controls=[CFG(its.guidance), *controls], **options)
        assert end.images is not None
        own = [scores(reward, end.images, queries).mean() for reward in named.values()]
        soft, strict = (scores(judge, end.images, queries) for judge in judges.values())
        plain = soft if plain is None else plain
        less = interval((soft - plain).reshape(NOISES, -1))
        print(f"| {name} | {' | '.join(f'{v:.3f}' for v in own)} | {soft.mean():.3f} | {less} | "
              f"{strict.mean():.3f} |", flush=True)  # fmt: skip

    row("nothing")
    for name, reward in named.items():
        row(f"best of 8 by {name}", BestOf(reward, 8))
        for strength in strengths:
            row(f"gradient of {name}, {strength:g}", RewardGradient(reward, strength, relative=True))


def sheet(named: dict[str, Any], backbone: str, strengths: list[float], out: Path) -> None:
    denoiser, its, queries = load_frozen(backbone), usual(backbone), held_out(8)
    rows = []
    for control in [None, *(RewardGradient(reward, strength, relative=True)
                           for reward in named.values() for strength in strengths)]:  # fmt: skip
        end = sample(denoiser, queries, seeds=[FIRST + k for k in range(len(queries))], steps=its.steps,
                     controls=[CFG(its.guidance), *([control] if control else [])])  # fmt: skip
        assert end.images is not None
        rows.append(torch.cat([*end.images], 2))
    bitmap = bitmaps(torch.cat(rows, 1)[None])[0]
    bitmap.resize((2 * bitmap.width, 2 * bitmap.height), Resampling.NEAREST).save(out)
    print("\n".join(queries))


def load_frozen(backbone: str) -> Any:
    denoiser = load(backbone)
    for part in denoiser.modules:
        part.requires_grad_(False)
    return denoiser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("agreement", "use", "sheet"))
    parser.add_argument("rewards", nargs="+", metavar="NAME=REWARD")
    parser.add_argument("--out", type=Path, help="of agreement the held-out gallery, of sheet the picture")
    parser.add_argument("--backbone", default="mini-turbo")
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.1, 0.2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    named = {name: reward_named(said) for name, _, said in (text.partition("=") for text in args.rewards)}
    if args.what == "use":
        use(named, args.backbone, args.strengths)
    elif args.out is None:
        parser.error(f"{args.what} wants --out")
    elif args.what == "sheet":
        sheet(named, args.backbone, args.strengths, args.out)
    else:
        agreement(named, args.out)


if __name__ == "__main__":
    main()

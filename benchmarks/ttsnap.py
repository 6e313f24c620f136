"""A noise-aware reward, distilled from mini-judge, and what pruning best of N by it gains on mini-unet.

    python benchmarks/ttsnap.py --out early

Trajectories of training queries: after every step of LEVELS the estimate is shown, and the label is what
mini-judge says of the image that it became. Then, on held-out queries: the rank correlation within a query of
estimates' rewards with that, raw and distilled; and the reward that best of N and pruned searches of as many
denoiser steps end with, over subsets of the noises, as the paper simulates it. --out holds the trajectories
and the judge (for `--control ttsnap:early=early/judge,...`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptloop.bench.paired import difference, interval
from promptloop.controls import CFG
from promptloop.controls.ttsnap import cost, left
from promptloop.denoisers import load
from promptloop.sample import State, decoded, sample
from promptloop.world.early_judge import EarlyJudge
from promptloop.world.judge import Judge, JudgeReward
from promptloop.world.oracle import OracleReward
from promptloop.world.queries import queries

STEPS, GUIDANCE, BATCH = 20, 5.0, 48
LEVELS = (1, 2, 3, 4, 6, 8, 11, 14, 17, 20)  # steps after which the estimate is read
KEEP = {2: 0.4, 6: 0.4, 11: 0.5}
BUDGETS = {2: 7, 4: 16, 6: 23}  # best of so many costs what so many with pruning do, or a little more
DRAWS = 400


def trajectories(
    denoiser: Any, judge: JudgeReward, file: Path, texts: list[str], each: int
) -> dict[str, Tensor]:
    """seen [N, levels, P, vision] of the estimates and gold [N], the oracle's of the images; `each` noises of
    every text, text by text.
    """
    if not file.exists():
        prompts = [text for text in texts for _ in range(each)]
        first = 10**6 if "train" in file.name else 0
        rows, gold = [], []
        for k in range(0, len(prompts), BATCH):
            part = prompts[k : k + BATCH]
            shown: list[Tensor] = []

            def look(state: State, shown: list[Tensor] = shown) -> None:
                if state.step in LEVELS and state.transition is not None:
                    images = decoded(denoiser, state.transition.clean)
                    with torch.no_grad():
                        shown.append(judge.senses.see(images).half())

            made = sample(denoiser, part, seeds=range(first + k, first + k + len(part)), steps=STEPS,
                          controls=[CFG(GUIDANCE)], on_step=look)  # fmt: skip
            assert made.images is not None
            rows.append(torch.stack(shown, 1))
            gold.append(OracleReward()(made.images, part))
        save_file({"seen": torch.cat(rows), "gold": torch.cat(gold).float()}, file)
    return load_file(file)


def distilled(start: Judge, seen: Tensor, words: Tensor, spoken: Tensor, args: Any) -> dict[int, Judge]:
    """Step -> a judge of the estimates after it; from late to early, each begins as the one before it."""
    label = scores(start, seen[:, -1], words, spoken)
    found: dict[int, Judge] = {}
    judge = start
    for k in range(len(LEVELS) - 1, -1, -1):
        made = Judge(judge.size)
        made.load_state_dict(judge.state_dict())
        adam = torch.optim.AdamW(made.parameters(), lr=args.rate, weight_decay=0.05)
        for update in range(args.updates):
            index = torch.randint(
                len(seen), (96,), generator=torch.Generator().manual_seed(1000 * k + update)
            )
            told = made(seen[index, k].float(), words[index], spoken[index])
            loss = F.mse_loss(told, label[index])
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            adam.step()
        found[LEVELS[k]] = judge = made.eval()
    return found


@torch.no_grad()
def scores(judge: Judge, seen: Tensor, words: Tensor, spoken: Tensor) -> Tensor:
    rows = torch.arange(len(seen)).split(256)
    return torch.cat([judge(seen[r].float(), words[r], spoken[r]) for r in rows])


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """[Q] rank correlation of [Q, N] with [Q, N], row by row."""
    ranks = [x.argsort(1).argsort(1).double() for x in (first, second)]
    one, two = (r - r.mean(1, keepdim=True) for r in ranks)
    return (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))


def ended(early: Callable[[int], Tensor], final: Tensor, of: int, keep: dict[int, float]) -> Tensor:
    """[DRAWS, Q] which of the noises [Q, N] a search ends with that draws `of`; early: step -> [Q, N]."""
    drawn = torch.Generator().manual_seed(of)
    chosen = []
    for _ in range(DRAWS):
        rows = torch.rand(final.shape, generator=drawn).argsort(1)[:, :of]
        for step, share in keep.items():
            order = early(step).gather(1, rows).argsort(1, descending=True)
            rows = rows.gather(1, order[:, : left(rows.shape[1], share)])
        chosen.append(rows.gather(1, final.gather(1, rows).argmax(1, keepdim=True))[:, 0])
    return torch.stack(chosen)


def told(judge: Judge, early: dict[int, Judge], held: dict[str, Tensor], words: Tensor, spoken: Tensor,
         each: int, denoiser: Any) -> None:  # fmt: skip
    """Prints both tables."""
    final = scores(judge, held["seen"][:, -1], words, spoken).view(-1, each)
    raw, ours = (
        {
            step: scores(one(step), held["seen"][:, k], words, spoken).view(-1, each)
            for k, step in enumerate(LEVELS)
        }
        for one in (lambda step: judge, lambda step: early[step])
    )
    print("| after step | share of noise | raw | distilled |\n|---|---|---|---|")
    levels = denoiser.levels(STEPS)
    for step in LEVELS[:-1]:
        cells = [str(interval(spearman(by[step], final)[None])) for by in (raw, ours)]
        print(f"| {step} | {levels[step - 1].share:.2f} | {' | '.join(cells)} |")
    gold, nothing = held["gold"].view(-1, each), dict[int, float]()
    print("\n| search | noises | denoiser steps | mini-judge | less best of | oracle | less best of |")
    print("|---|---|---|---|---|---|---|")
    for few, many in BUDGETS.items():
        best: list[Tensor] = []
        for name, of, keep, by in (("best of", few, nothing, raw), ("pruned, raw", many, KEEP, raw),
                                   ("pruned, distilled", many, KEEP, ours),
                                   ("best of all of them", many, nothing, raw)):  # fmt: skip
            rows = ended(by.__getitem__, final, of, keep)
            means = [
                v[None].expand(DRAWS, -1, -1).gather(2, rows[..., None]).mean((0, 2)) for v in (final, gold)
            ]
            best = best or means
            cells = [
                f"{m.mean():.3f} | {difference(m[None], b[None])}" for m, b in zip(means, best, strict=True)
            ]
            print(f"| {name} | {of} | {cost(STEPS, of, keep):.0f} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=168, help="of training, 6 noises each")
    parser.add_argument("--held-out", type=int, default=14, help="for the report, 24 noises each")
    parser.add_argument("--updates", type=int, default=30, help="at each level")
    parser.add_argument("--rate", type=float, default=2e-5)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    denoiser, judge = load("mini-unet", dtype=torch.bfloat16), JudgeReward()
    rows = {}
    for name, count, each in (("train", args.queries, 6), ("held", args.held_out, 24)):
        texts = [query.text for query in queries(count, 0, held_out=name == "held")]
        made = trajectories(denoiser, judge, args.out / f"{name}-{count}.safetensors", texts, each)
        words, spoken = (x.repeat_interleave(each, 0) for x in judge.senses.hear(texts))
        rows[name] = (made, words, spoken)
    train, words, spoken = rows["train"]
    early = distilled(judge.judge, train["seen"], words, spoken, args)
    levels = denoiser.levels(STEPS)
    shares = {levels[step - 1].share: one for step, one in early.items()}
    EarlyJudge(shares, judge.senses).save(args.out / "judge")
    told(judge.judge, early, *rows["held"], 24, denoiser)


if __name__ == "__main__":
    main()

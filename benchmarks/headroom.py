"""How much can feedback gain in the embedded world? Scripted policies on held-out queries, paired by seed.

    python benchmarks/headroom.py --backbone NAME --queries 98 --seeds 3 --out docs/world/headroom-NAME.json

Arms: (a) the query as it is, (b) rewriting ahead, (c) a timed schedule that never looks, (d) a policy that
looks at the estimate, (e) the same shown another sample's estimate. Variants of (b), (c) and (d) are chosen
on training queries (--choose) and reported on held-out ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from promptloop.bench.paired import difference, interval
from promptloop.controls import CFG, PromptLoop
from promptloop.denoisers import load
from promptloop.policies.fixed import Identity
from promptloop.policies.shown import Shuffled
from promptloop.recipes.usual import PAPER_WINDOW, Usual, usual
from promptloop.sample import Control, sample
from promptloop.world import weights
from promptloop.world.oracle import Grades, grade
from promptloop.world.queries import Query, queries
from promptloop.world.scripted import Ahead, Look, Timed

OVERLAP = (0.2, 0.6)  # for arms that do not look: where they write again does not matter to most of them
EARLY, LATER = (0.15, 0.55), (0.15, 0.7)
ARMS = {
    "a query": (Identity(), OVERLAP),
    "b dense": (Ahead(), OVERLAP),
    "b terse": (Ahead(terse=True), OVERLAP),
    "b dense, places": (Ahead(places=True), OVERLAP),
    "b dense, colours": (Ahead(colours=True), OVERLAP),
    "b dense, colours, places": (Ahead(colours=True, places=True), OVERLAP),
    "b dense, colours, places, company": (Ahead(colours=True, places=True, company=True), OVERLAP),
    "c turns": (Timed("turns"), OVERLAP),
    "c turns, definite": (Timed("fine", every=0.08, definite=True), EARLY),
    "c coarse, definite": (Timed("coarse", late=0.25, definite=True), EARLY),
    "c coarse": (Timed("coarse", late=0.25), OVERLAP),
    "d looks, only": (Look("only"), EARLY),
    "d looks, without places": (Look(places=False), EARLY),
    "d looks": (Look(), EARLY),
    "d looks, later": (Look(), LATER),
    "d looks, whole trajectory": (Look(), PAPER_WINDOW),
    "d looks, all along": (Look(fine=0.0, until=1.0), PAPER_WINDOW),
    "e another's estimate": (Shuffled(Look()), EARLY),
    "e another's estimate, all along": (Shuffled(Look(fine=0.0, until=1.0)), PAPER_WINDOW),
}
LOOKS = "d looks, all along"
PAIRS = tuple(
    (LOOKS, name) for name in ("a query", "b dense, colours, places", "e another's estimate, all along")
)


def run(
    denoiser: Any, policy: Any, window: Any, asked: list[Query], seeds: list[int], its: Usual, batch: int
) -> Grades:
    controls: list[Control] = [CFG(its.guidance)]
    if not isinstance(policy, Identity):
        controls.append(PromptLoop(policy, refinements=5, window=window))
    result = sample(
        denoiser, [q.text for q in asked], steps=its.steps, controls=controls, seeds=seeds, max_batch=batch
    )
    assert result.images is not None
    return grade(result.images, [q.ask for q in asked])


def summarise(row: dict) -> dict:
    """Means with 95% bootstrap intervals over queries (each query's seeds stay together)."""
    soft, strict = torch.tensor(row["soft"]).mean(0), torch.tensor(row["strict"]).mean(0)
    whole, all_or_nothing = interval(soft[None]), interval(strict[None])
    return {
        "soft": round(whole.mean, 4),
        "interval": [round(whole.low, 4), round(whole.high, 4)],
        "strict": round(all_or_nothing.mean, 4),
        "strict_interval": [round(all_or_nothing.low, 4), round(all_or_nothing.high, 4)],
        "window": row["window"],
        "per_query_soft": [round(v, 3) for v in soft.tolist()],
        "per_query_strict": [round(v, 3) for v in strict.tolist()],
    }


def differences(rows: dict) -> dict[str, str]:
    """The paired differences of `PAIRS` in the soft and the strict score, with intervals."""
    out = {}
    for first, second in (pair for pair in PAIRS if rows.keys() >= set(pair)):
        for kind in ("soft", "strict"):
            means = [torch.tensor(rows[name][kind]).mean(0)[None] for name in (first, second)]
            out[f"{first} - {second}, {kind}"] = str(difference(*means))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mini-unet")
    parser.add_argument("--queries", type=int, default=140)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", help="substrings of arms; default all")
    parser.add_argument("--choose", action="store_true", help="on training queries, to choose variants")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    its = usual(args.backbone)
    folder = Path(args.backbone) if Path(args.backbone).is_dir() else weights(args.backbone)
    denoiser = load(folder)
    asked = queries(args.queries, 0 if args.choose else 1, held_out=not args.choose)
    rows = {}
    for name, (policy, window) in ARMS.items():
        if args.arms and not any(a in name for a in args.arms):
            continue
        if its.steps < 20 and window != PAPER_WINDOW:  # few steps: there is no room for five in a narrow one
            window = its.window
        began, soft, strict = time.time(), [], []
        for seed in range(args.seeds):
            seeds = [1000 * (seed + 1) + i for i in range(len(asked))]
            grades = run(denoiser, policy, window, asked, seeds, its, 70)
            soft.append(grades.soft.tolist())
            strict.append(grades.strict.tolist())
        rows[name] = {"soft": soft, "strict": strict, "window": window, "seconds": time.time() - began}
        s, t = torch.tensor(soft), torch.tensor(strict)
        error = s.mean(0).std() / len(asked) ** 0.5
        print(
            f"{name:24s} soft {s.mean():.3f} +- {error:.3f}  strict {t.mean():.3f}  "
            f"{rows[name]['seconds']:.0f} s",
            flush=True,
        )
        tasks = {q.task for q in asked}
        print(
            "    " + "  ".join(f"{k} {s[:, [q.task == k for q in asked]].mean():.2f}" for k in sorted(tasks)),
            flush=True,
        )
    told = differences(rows)
    print("\n".join(f"{pair}: {value}" for pair, value in told.items()))
    if args.out:
        summary = {name: summarise(row) for name, row in rows.items()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps(
                {
                    "settings": {k: str(v) for k, v in vars(args).items()},
                    "summary": summary,
                    "differences": told,
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()

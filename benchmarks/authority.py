"""When can the estimate be read, and when does a change of prompt still matter? One picture of both.

    python benchmarks/authority.py --backbone mini-unet --queries 70 --out docs/world/authority-mini-unet.json

Readability at step k: the share of clauses on which the oracle's verdict on the estimate after k steps equals
its verdict on the final image. Authority at step k: how far the final image follows a new prompt that comes
into force at step k, between an image that never got it (0) and one that had it from the start (1).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from promptloop.controls import CFG, Scheduled
from promptloop.denoisers import load
from promptloop.recipes.usual import usual
from promptloop.sample import State, sample
from promptloop.world import weights
from promptloop.world.captions import Ask, phrase
from promptloop.world.oracle import grade
from promptloop.world.queries import queries


def verdicts(images: Any, asks: list[Ask]) -> torch.Tensor:
    return torch.tensor([c.score >= 0.5 for row in grade(images, asks).reasons for c in row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mini-unet")
    parser.add_argument("--queries", type=int, default=70)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    its = usual(args.backbone)
    denoiser = load(Path(args.backbone) if Path(args.backbone).is_dir() else weights(args.backbone))
    asks = [q.ask for q in queries(args.queries, 1, held_out=True)]
    texts, seeds = [phrase(a) for a in asks], list(range(len(asks)))
    estimates: dict[int, torch.Tensor] = {}

    def look(state: State) -> None:
        if state.transition is not None:
            estimates[state.step] = denoiser.decode(state.transition.clean)

    common: dict[str, Any] = {"steps": its.steps, "seeds": seeds}
    final = sample(denoiser, texts, controls=[CFG(its.guidance)], on_step=look, **common).images
    assert final is not None
    told = verdicts(final, asks)
    readable = {k: (verdicts(image, asks) == told).float().mean().item() for k, image in estimates.items()}
    # another query's words, in force from step k on
    other = texts[len(texts) // 2 :] + texts[: len(texts) // 2]
    wanted = asks[len(asks) // 2 :] + asks[: len(asks) // 2]
    never, always = grade(final, wanted).soft.mean().item(), 0.0
    authority = {}
    for k in range(0, its.steps):
        plan = [{0: a, k: b} for a, b in zip(texts, other, strict=True)]
        images = sample(denoiser, texts, controls=[CFG(its.guidance), Scheduled(plan)], **common).images
        assert images is not None
        score = grade(images, wanted).soft.mean().item()
        always = score if k == 0 else always
        authority[k] = (score - never) / (always - never)
        print(
            f"step {k:2d}: readable {readable.get(k, float('nan')):.3f}  authority {authority[k]:.3f}",
            flush=True,
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps(
                {"backbone": args.backbone, "steps": its.steps, "readable": readable, "authority": authority}
            )
        )


if __name__ == "__main__":
    main()

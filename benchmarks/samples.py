"""A sheet of what an embedded backbone draws: held-out queries, no policy, the oracle's score below each.

python benchmarks/samples.py --backbone mini-unet --out docs/world/samples-mini-unet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from promptloop.controls import CFG
from promptloop.denoisers import load
from promptloop.recipes.filmstrip import font, wrap
from promptloop.recipes.shot import pixels
from promptloop.recipes.usual import usual
from promptloop.sample import sample
from promptloop.world import weights
from promptloop.world.oracle import grade
from promptloop.world.queries import queries

TILE, GAP, TEXT = 128, 10, 46


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mini-unet")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = load(Path(args.backbone) if Path(args.backbone).is_dir() else weights(args.backbone))
    asked = queries(28, 1, held_out=True)
    its = usual(args.backbone)
    guided = [CFG(its.guidance)]
    images = sample(
        denoiser, [q.text for q in asked], seeds=range(28), steps=its.steps, controls=guided
    ).images
    assert images is not None
    scores = grade(images, [q.ask for q in asked]).soft
    page = Image.new("RGB", (7 * (TILE + GAP) + GAP, 4 * (TILE + TEXT + GAP) + GAP), "white")
    draw = ImageDraw.Draw(page)
    for k, query in enumerate(asked):
        x, y = GAP + k % 7 * (TILE + GAP), GAP + k // 7 * (TILE + TEXT + GAP)
        page.paste(Image.fromarray(pixels(images[k])).resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
        words = [(word, False) for word in f"{query.text} ({scores[k]:.2f})".split()]
        for n, line in enumerate(wrap(words, TILE, 10)[:4]):
            draw.text((x, y + TILE + 2 + 11 * n), " ".join(w for w, _ in line), font=font(10), fill="black")
    page.save(args.out)


if __name__ == "__main__":
    main()

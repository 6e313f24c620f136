"""How far the learned rewards are from slow computations in float64, and how long the measured ones take.

    OMP_NUM_THREADS=1 python benchmarks/reward_parity.py           # docs/rewards_learned.md
    OMP_NUM_THREADS=1 python benchmarks/reward_parity.py --mps     # where its rounding comes from
    OMP_NUM_THREADS=1 python benchmarks/reward_parity.py --speed   # docs/rewards_judged.md

Networks are tiny and random, in the released checkpoints' layouts (tests/tiny_clips.py); the slow
computations are the tests' (tests/parity).
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptloop.recipes.rewards import reward_named
from promptloop.rewards.pictures import prepared, processed

TESTS = Path(__file__).resolve().parents[1] / "tests"
SEEDS, RUNS, IMAGES = range(4), 3, 8


def apart(reward: Any, texts: Sequence[str], sides: tuple[int, int], slow: Callable[..., list[float]]) -> str:
    """The largest difference over the seeds, of three pictures each; in float32, and in float64."""
    cells = []
    for dtype in (torch.float32, torch.float64):
        reward, worst = reward.to(dtype), 0.0
        for seed in SEEDS:
            images = torch.rand(3, 3, *sides, generator=torch.Generator().manual_seed(seed)).to(dtype)
            wanted = torch.tensor(slow(images), dtype=torch.float64)
            worst = max(worst, float((reward(images, texts).double() - wanted).abs().max()))
        cells.append(f"{worst:.1e}")
    return "  ".join(cells)


def parity() -> None:
    sys.path[:0] = [str(TESTS), str(TESTS / "parity")]
    import test_clips as clips
    import test_hpsv3 as hpsv3
    import test_imagereward as image
    import tiny_imagereward
    import tiny_vlm

    def folder() -> Path:
        return Path(tempfile.mkdtemp())

    for name, (_, tensors, view, score) in clips.CASES.items():
        weights = {n: value.double() for n, value in tensors().items()}

        def slow(x: Tensor, w: Any = weights, see: Any = view, f: Any = score) -> list[float]:
            return [f(w, p, t) for p, t in zip(see(x, clips.SIDE).double(), clips.TEXTS, strict=True)]

        reward = reward_named(f"{name}:{clips.made(name, folder())}")
        print(f"{name:18s} {apart(reward, clips.TEXTS, (40, 52), slow)}", flush=True)
    reward = reward_named(f"hpsv3:{hpsv3.saved(folder())}")
    reward.tokens = 6
    held = hpsv3.state(len(tiny_vlm.tokenizer(*hpsv3.SPECIAL)) + 1)
    whole = {n: value.double() for n, value in held.items()}
    print(f"{'hpsv3':18s} " + apart(reward, hpsv3.QUERIES, (40, 60), lambda x: [
        hpsv3.slow(whole, p, q) for p, q in zip(hpsv3.fitted(x, 16, 6).double(), hpsv3.QUERIES, strict=True)
    ]), flush=True)  # fmt: skip
    reward = reward_named(f"imagereward:{tiny_imagereward.saved(folder())}")
    state = tiny_imagereward.state()
    print(f"{'imagereward':18s} " + apart(reward, image.TEXTS, (32, 32), lambda x: [
        image.slow(state, p, q) for p, q in zip(prepared(x, 32), image.TEXTS, strict=True)
    ]), flush=True)  # fmt: skip


class Exact(nn.Module):
    """A tower in float64 within a network in float32."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower).double()

    def forward(self, **inputs: Tensor) -> Any:
        given = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
        found = self.tower(**given)
        return type(found)(**{n: x.float() for n, x in found.items()})


@torch.no_grad()
def mps() -> None:
    """Its largest difference from itself in float64, and with CLIP's towers in float64; of 8 x 3 pictures."""
    sys.path[:0] = [str(TESTS), str(TESTS / "parity")]
    import test_clips as clips
    import tiny_clips

    print("weights  all float32  text's tower exact  picture's exact  both exact")
    for weights in SEEDS:
        folder = clips.made("mps", Path(tempfile.mkdtemp()), tiny_clips.mps(weights))
        plain = reward_named(f"mps:{folder}")
        exact, cells = copy.deepcopy(plain).double(), []
        for towers in ((), ("text_model",), ("vision_model",), ("text_model", "vision_model")):
            reward, worst = copy.deepcopy(plain), 0.0
            for tower in towers:
                setattr(reward.network.clip, tower, Exact(getattr(reward.network.clip, tower)))
            for seed in range(8):
                images = torch.rand(3, 3, 40, 52, generator=torch.Generator().manual_seed(seed))
                pixels = processed(images, clips.SIDE)
                ids = reward.words(clips.TEXTS)
                apart_ = exact.scores(pixels.double(), ids) - reward.scores(pixels, ids).double()
                worst = max(worst, float(apart_.abs().max()))
            cells.append(f"{worst:.1e}")
        print(f"{weights:7d}  " + "  ".join(cells), flush=True)


def speed() -> None:
    """Processor time of one image of the embedded world, the least of some runs."""
    from promptloop.denoisers import load
    from promptloop.sample import sample

    made = sample(load("mini-turbo"), ["a red circle"] * IMAGES, seeds=[*range(IMAGES)], steps=8).images
    assert made is not None
    large = torch.nn.functional.interpolate(made, (512, 512), mode="bicubic", antialias=True).clamp(0, 1)
    small = ("oracle", "preference", "vendi", "frechet")
    for name in ("compressibility", "sharpness", "colourfulness", *small):
        images = made if name in small else large
        reward, spent = reward_named(name), []
        reward(images, ["a red circle"] * IMAGES)  # what is made once
        for _ in range(RUNS):
            begun = time.process_time()
            reward(images, ["a red circle"] * IMAGES)
            spent.append(time.process_time() - begun)
        print(f"{name:18s} {1000 * min(spent) / IMAGES:.1f} ms an image of {images.shape[-1]}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--speed", action="store_true", help="time the measured and set rewards instead")
    parser.add_argument("--mps", action="store_true", help="tell where MPS's rounding comes from instead")
    given = parser.parse_args()
    (speed if given.speed else mps if given.mps else parity)()


if __name__ == "__main__":
    main()

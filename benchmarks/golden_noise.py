"""Golden noise: pairs of noise and renoised noise, a network trained on them, and what it gains.

    python benchmarks/golden_noise.py --out golden

Pairs are kept whose renoised noise makes the better image, by the reward. The report is on held-out queries,
paired with the plain noise: the renoised noise itself (what the network is trained on), then the network.
Pairs and training are kept in --out and not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptloop.bench.paired import difference, interval
from promptloop.controls import CFG
from promptloop.controls.golden import GoldenNoise, renoised
from promptloop.controls.npnet import NPNet, Shape
from promptloop.controls.npnet_weights import load as load_npnet
from promptloop.controls.npnet_weights import save
from promptloop.denoisers import load
from promptloop.recipes.rewards import reward_named
from promptloop.rewards.contract import scored
from promptloop.sample import Control, sample
from promptloop.world.fit import fit
from promptloop.world.queries import held_out, queries

BATCH = 32
REPORTED = ("preference", "oracle", "oracle-strict")


def images_of(denoiser: Any, prompts: list[str], seeds: list[int], args: Any, *more: Control,
              noise: Tensor | None = None) -> Tensor:  # fmt: skip
    made = sample(denoiser, prompts, seeds=seeds, steps=args.steps, noise=noise, max_batch=BATCH,
                  controls=[CFG(args.scale), *more]).images  # fmt: skip
    assert made is not None
    return made


def pairs(denoiser: Any, args: Any) -> dict[str, Tensor]:
    """noise, golden [N, C, h, w], text [N, L, W], and gain [N], the reward's, of training queries."""
    file = args.out / f"pairs-{args.pairs}.safetensors"
    if not file.exists():
        reward = reward_named(args.reward)
        prompts = [query.text for query in queries(args.pairs, 0, held_out=False)]
        seeds = [*range(10**6, 10**6 + args.pairs)]
        noise = denoiser.noise(seeds).float()
        golden, text = [], []
        for k in range(0, args.pairs, BATCH):
            part = slice(k, k + BATCH)
            golden.append(renoised(denoiser, prompts[part], seeds=seeds[part], steps=args.grid,
                                   scale=args.scale, back=args.back))  # fmt: skip
            text.append(denoiser.embed(prompts[part]).fields["text"].float())
        target = torch.cat(golden)
        before, after = (
            scored(reward, images_of(denoiser, prompts, seeds, args, noise=start), prompts)
            for start in (noise, target)
        )
        save_file({"noise": noise, "golden": target, "text": torch.cat(text), "gain": after - before}, file)
    return load_file(file)


def trained(rows: dict[str, Tensor], args: Any) -> tuple[NPNet, dict[str, float]]:
    """The network after MSE on the pairs; its error on pairs left out, and that of giving noise back."""
    left = len(rows["noise"]) // 10
    noise, golden, text = (rows[name] for name in ("noise", "golden", "text"))
    torch.manual_seed(0)
    network = NPNet(Shape(side=noise.shape[-1], text=text[0].numel(), image=32, patch=2, width=48,
                          depths=(2, 2), heads=(3, 6), window=4, wide=256))  # fmt: skip

    def loss_at(step: int) -> Tensor:
        drawn = torch.Generator().manual_seed(step)
        index = left + torch.randint(len(noise) - left, (BATCH,), generator=drawn)
        return F.mse_loss(network(noise[index], text[index]), golden[index])

    def check(step: int) -> dict[str, float]:
        return {"held out": F.mse_loss(network(noise[:left], text[:left]), golden[:left]).item()}

    fit(network, loss_at, steps=args.updates, lr=args.rate, seed=0, folder=args.out / "run", average=0.99,
        weight_decay=args.decay, warmup=50, check=check, check_every=100)  # fmt: skip
    with torch.no_grad():
        found = check(args.updates)
    save(network, args.out / "npnet")
    return network, {**found, "noise given back": F.mse_loss(noise[:left], golden[:left]).item()}


def report(denoiser: Any, args: Any) -> None:
    prompts = held_out(args.queries) * args.seeds
    seeds = [*range(len(prompts))]
    noise = denoiser.noise(seeds).float()
    ways: dict[str, tuple[Tensor, list[Control]]] = {"plain": (noise, [])}
    target = torch.cat([
        renoised(denoiser, prompts[k : k + BATCH], seeds=seeds[k : k + BATCH], steps=args.grid,
                 scale=args.scale, back=args.back)
        for k in range(0, len(prompts), BATCH)
    ])  # fmt: skip
    ways["renoised"] = (target, [])
    for strength in (0.5, 1.0):
        control = GoldenNoise(load_npnet(args.out / "npnet"), strength)
        ways[f"network, strength {strength}"] = (noise, [control])
    rewards = {name: reward_named(name) for name in REPORTED}
    plain: dict[str, Tensor] = {}
    for name, (start, more) in ways.items():
        images = images_of(denoiser, prompts, seeds, args, *more, noise=start)
        line = name
        for said, reward in rewards.items():
            scores = scored(reward, images, prompts).view(args.seeds, args.queries)
            first = plain.setdefault(said, scores)
            line += f" | {said} {interval(scores)}, less plain {difference(scores, first)}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbone", default="mini-unet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reward", default="preference", help="by which pairs are kept")
    parser.add_argument("--pairs", type=int, default=768, help="that are drawn")
    parser.add_argument("--margin", type=float, default=0.0, help="by how much the reward has to rise")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--grid", type=int, default=3, help="of so many steps the first is made and undone")
    parser.add_argument("--scale", type=float, default=5.0)
    parser.add_argument("--back", type=float, default=1.0)
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--queries", type=int, default=63, help="held out, for the report")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    denoiser = load(args.backbone, dtype=torch.bfloat16)
    rows = pairs(denoiser, args)
    kept = rows["gain"] > args.margin
    moved = (rows["golden"] - rows["noise"])[kept]
    print(f"{int(kept.sum())} of {len(kept)} pairs kept; gain of all {interval(rows['gain'][None])}; those "
          f"move by {moved.pow(2).mean().sqrt():.3f}, to a root mean square of "
          f"{rows['golden'][kept].pow(2).mean().sqrt():.3f}", flush=True)  # fmt: skip
    found = trained({name: value[kept] for name, value in rows.items()}, args)[1]
    print(json.dumps({name: round(value, 5) for name, value in found.items()}), flush=True)
    report(denoiser, args)


if __name__ == "__main__":
    main()

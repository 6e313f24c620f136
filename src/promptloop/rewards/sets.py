"""Rewards of a set of images, shared out among its images: what each adds to its set.

After DRAGON (Bai et al., arXiv 2504.15217): a distance or a diversity belongs to many images, but training
wants a number for each. Images of the same query are one set, so that a reward does not depend on what other
queries are in the batch; with `per="batch"` all are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from promptloop.names import one_of
from promptloop.rewards.distribution import Gaussian, frechet, vendi

Worth = Callable[[Tensor], float]  # features [n, D] of a set -> what it is worth; higher is better
SWEEPS = 20  # over the pairs, at most: each exchange raises the worth, so that it ends of itself


@final
@dataclass(frozen=True, eq=False)
class OfSet:
    """Images to what each is worth to its set [B].

    features: images [n, 3, H, W] in [0, 1] to [n, D], or [n, ...], which is flattened.
    worth: of a set's features; higher is better.
    credit: "leave-one-out" is worth(set) - worth(set without it); "pairs" is DRAGON's contrast: images 2k and
        2k + 1 of a set are rivals, the better half is looked for by `contrast`, and an image's credit is what
        that half is worth with it less what it is worth with its rival.
    per: what a set is, the images of one "query" or the whole "batch".
    least: images that a set must have at least for its credits to be defined.
    name: what errors call it.
    """

    features: Callable[[Tensor], Tensor]
    worth: Worth
    credit: Literal["leave-one-out", "pairs"] = "leave-one-out"
    per: Literal["query", "batch"] = "query"
    least: int = 2
    name: str = "OfSet"
    differentiable: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True  # an image's value depends on the others
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of(self.credit, ("leave-one-out", "pairs"), "credit")
        one_of(self.per, ("query", "batch"), "kind of set")

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        if len(images) != len(queries):
            raise ValueError(f"{len(queries)} queries for {len(images)} images; give one each")
        found = self.features(images).detach()
        credits = torch.empty(len(images), dtype=torch.float64)
        for query, rows in sets(queries, self.per).items():
            if len(rows) < self.least:
                raise ValueError(
                    f"the set of image {rows[0]} ({query!r}) has {len(rows)} images; this reward needs at "
                    f"least {self.least} images of one {self.per}"
                )
            of_set = found[rows]
            share = left_out if self.credit == "leave-one-out" else rivals
            credits[rows] = share(of_set, self.worth)
        return credits.float()


def sets(queries: Sequence[str], per: str) -> dict[str, list[int]]:
    """Row numbers of every set, by its (first) query."""
    found: dict[str, list[int]] = {}
    for k, query in enumerate(queries):
        found.setdefault(query if per == "query" else queries[0], []).append(k)
    return found


def left_out(features: Tensor, worth: Worth) -> Tensor:
    """[n]: what the set loses with each. They sum to n worth(set) - the sum of the worths without one."""
    whole, all_rows = worth(features), torch.arange(len(features))
    without = [worth(features[all_rows != k]) for k in range(len(features))]
    return whole - torch.tensor(without, dtype=torch.float64)


def rivals(features: Tensor, worth: Worth) -> Tensor:
    """[n]: of rivals 2k and 2k + 1, what the better half gains by it over the other; the two sum to 0."""
    if len(features) % 2:
        raise ValueError(f"{len(features)} images cannot be split into pairs; draw an even number")
    pairs = features.unflatten(0, (-1, 2))
    chosen = contrast(pairs, worth)
    best = worth(half(pairs, chosen))
    credits = torch.empty(len(pairs), 2, dtype=torch.float64)
    for k in range(len(pairs)):
        gain = best - worth(half(pairs, exchanged(chosen, k)))
        credits[k, chosen[k]], credits[k, 1 - chosen[k]] = gain, -gain
    return credits.flatten()


def contrast(pairs: Tensor, worth: Worth) -> Tensor:
    """[n] of 0 and 1: which of each pair [n, 2, D] to take, so that no single exchange makes what is taken
    worth more. Begins with the better of all first and all second ones.
    """
    all_of = [torch.full((len(pairs),), side) for side in (0, 1)]
    chosen = max(all_of, key=lambda sides: worth(half(pairs, sides)))
    best = worth(half(pairs, chosen))
    for _ in range(SWEEPS):
        before = best
        for k in range(len(pairs)):
            other = exchanged(chosen, k)
            if (value := worth(half(pairs, other))) > best:
                chosen, best = other, value
        if best == before:
            break
    return chosen


def half(pairs: Tensor, chosen: Tensor) -> Tensor:
    return pairs[torch.arange(len(pairs)), chosen]


def exchanged(chosen: Tensor, k: int) -> Tensor:
    other = chosen.clone()
    other[k] = 1 - other[k]
    return other


# --- by name, on the embedded world's features


def diversity() -> OfSet:
    """What each image adds to the Vendi score of its query's images, on latents."""
    return OfSet(Latents(), vendi, name="vendi")


def likeness(count: int = 256, seed: int = 0) -> OfSet:
    """What each image takes off the Frechet distance between its batch and `count` random scenes, on the
    latents' moments: 8 numbers, since a set of fewer images than features seems too narrow, and then whatever
    is odd in it widens it and is credited.
    """
    import random

    from promptloop.world.autoencoder import pixels
    from promptloop.world.scene import random_scene

    rng, features = random.Random(f"{seed}/likeness"), Latents(moments=True)
    reference = Gaussian.of(features(pixels([random_scene(rng) for _ in range(count)]) * 0.5 + 0.5))
    return OfSet(features, near(reference), per="batch", least=3, name="frechet")


def near(reference: Gaussian) -> Worth:
    """Minus the Frechet distance of a set from the reference."""
    return lambda features: -frechet(reference, Gaussian.of(features))


@final
class Latents:
    """Images [B, 3, 64, 64] to the embedded autoencoder's latents [B, 4, 16, 16], or their `moments` [B, 8]:
    mean and deviation of each channel.
    """

    def __init__(self, *, moments: bool = False) -> None:
        from diffusers import AutoencoderKL

        from promptloop.world import weights

        folder = weights("mini-unet") / "vae"
        made: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
        self.encode, self.moments = made.requires_grad_(False).eval().encode, moments

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        latents = self.encode(images.float().cpu() * 2 - 1).latent_dist.mean
        if not self.moments:
            return latents
        return torch.cat([latents.mean((2, 3)), latents.std((2, 3))], 1)

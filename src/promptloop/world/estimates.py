"""What mini-vlm is shown: estimates of mini-unet from noised training scenes, of mini-turbo on its way.

A blurred estimate of mini-unet is told by the scene it will become. mini-turbo's are sharp guesses, which may
change with the next draw of noise: they are told by what stands there, read by the oracle's rules.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptloop.world.backbones import scene_at, tokens
from promptloop.world.captions import describe, phrase
from promptloop.world.distil import LEVELS
from promptloop.world.eyes import Pool
from promptloop.world.reading import Reading, read
from promptloop.world.scene import GROUNDS, Scene, random_scene

BATCH = 64
STEPS = 20  # of mini-unet's trajectory
LATENT = (4, 16, 16)


@torch.no_grad()
def of_scenes(pipe: Any, latents: Tensor, scenes: list[Scene], *, seed: int) -> tuple[Tensor, Tensor]:
    """Estimates uint8 [N, 3, 64, 64] of noised latents by ``mini-unet``, and their progress [N].

    The prompt is what a user or a policy may have said of the scene: the estimate mixes what the noise still
    shows with what the words make the network believe, as inside a trajectory.
    """
    rows, when = [], []
    for first in range(0, len(latents), BATCH):
        rng = random.Random(f"{seed}/estimates/{first}")
        part = latents[first : first + BATCH].float()
        noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(rng.getrandbits(60)))
        done = torch.tensor([rng.randint(1, STEPS - 1) for _ in part])
        t = (1000 - 1000 * (done - 1) // STEPS - 1).clamp(0, 999)
        abar = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        texts = [phrase(describe(s, rng, dense=0.7)) for s in scenes[first : first + BATCH]]
        text = read_by(pipe, texts)
        x = abar.sqrt() * part + (1 - abar).sqrt() * noise
        clean = (x - (1 - abar).sqrt() * pipe.unet(x, t, text).sample) / abar.sqrt()
        rows.append(seen(pipe, clean))
        when.append(done / STEPS)
    return torch.cat(rows), torch.cat(when)


@torch.no_grad()
def drawing(pipe: Any, text: Tensor, noise: torch.Generator) -> Iterator[Tensor]:
    """The latent estimates of ``mini-turbo`` after each of its steps, for texts as its encoder reads them."""
    pipe.scheduler.set_timesteps(LEVELS, original_inference_steps=LEVELS)
    x = torch.randn(len(text), *LATENT, generator=noise)
    for t in pipe.scheduler.timesteps:
        moved = pipe.scheduler.step(pipe.unet(x, t, text).sample, t, x, generator=noise)
        x = moved.prev_sample
        yield moved.denoised


@torch.no_grad()
def on_the_way(pipe: Any, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` estimates [N, 3, 64, 64] of ``mini-turbo`` as it draws, and their progress."""
    rows, when = [], []
    for batch in range(math.ceil(count / (LEVELS * BATCH))):
        rng = random.Random(f"{seed}/on the way/{batch}")
        noise = torch.Generator().manual_seed(rng.getrandbits(60))
        texts = [phrase(describe(s, rng, dense=0.7)) for s in wanted(seed, batch)]
        for done, clean in enumerate(drawing(pipe, read_by(pipe, texts), noise), start=1):
            rows.append(seen(pipe, clean))
            when.append(torch.full((BATCH,), done / LEVELS))
    return torch.cat(rows)[:count], torch.cat(when)[:count]


def wanted(seed: int, batch: int) -> list[Scene]:
    """The scenes that the prompts of one batch of trajectories describe."""
    rng = random.Random(f"{seed}/on the way/scenes/{batch}")
    return [random_scene(rng) for _ in range(BATCH)]


def read_by(pipe: Any, texts: list[str]) -> Tensor:
    """``texts`` as the text encoder reads them [N, tokens, width]."""
    states: Tensor = pipe.text_encoder(tokens(pipe.tokenizer, texts, "cpu"))[0]
    return states


def seen(pipe: Any, clean: Tensor) -> Tensor:
    """Latents as uint8 images [N, 3, 64, 64]."""
    image = pipe.vae.decode(clean / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
    return ((image + 1) * 127.5).clamp(0, 255).round().byte()


def told(images: Tensor, *, seed: int) -> list[Scene]:
    """What stands in the ``images`` of ``on_the_way``; where nothing can be read, what was wanted."""
    scenes = []
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        reading = read(part.float() / 255)
        there = wanted(seed, first // (LEVELS * BATCH))
        scenes += [scene_of(reading, i) or there[i] for i in range(len(part))]
    return scenes


def scene_of(reading: Reading, image: int) -> Scene | None:
    """What stands in an image, as far as rules can read it: a thing to a cell, the four largest."""
    cells = {(thing.column, thing.row): thing for thing in reversed(reading.things(image))}
    ground = GROUNDS[int(reading.ground[image].argmax())]
    return Scene(tuple(cells.values())[-4:], ground) if cells else None


def pool(out: Path, unet: Any, turbo: Any, latents: Tensor, *, count: int, seed: int) -> Pool:
    """``count`` estimates, half from each of the two, mixed; cached in ``out``.

    ``latents`` are those of the training scenes of ``seed``.
    """
    half = count // 2
    known = [scene_at(seed, i) for i in range(half)]
    file = out / f"pool-{seed}-{count}.safetensors"
    if not file.exists():
        images, when = of_scenes(unet, latents[:half], known, seed=seed)
        more, later = on_the_way(turbo, count - half, seed=seed)
        made = {"images": torch.cat([images, more]), "when": torch.cat([when, later])}
        save_file(made, f"{file}.part")
        Path(f"{file}.part").replace(file)
    saved = load_file(file)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    scenes = known + told(saved["images"][half:], seed=seed)
    return saved["images"][order], saved["when"][order], [scenes[i] for i in order]

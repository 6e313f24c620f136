"""``mini-turbo``: mini-unet distilled to eight steps without guidance (latent consistency distillation).

Luo et al., arXiv 2310.04378, algorithm 1: the student's answer at one level must be its own answer at the
next cleaner level, where the guided teacher arrives in one DDIM step. The target is the student itself
without gradient (Song and Dhariwal, arXiv 2310.14189, section 3.2: an averaged target does no better). A
step to the last level ends at the teacher's own estimate.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptloop.world.backbones import BATCH, scene_at, tokens
from promptloop.world.captions import caption
from promptloop.world.fit import fit

LEVELS = 8  # it knows these eight, so it can be sampled in 8, 4, 2 or 1 steps
GUIDANCE = 5.0
TIMES = tuple(999 - k * 1000 // LEVELS for k in range(LEVELS))
SWAPPED = 0.25  # how often a picture comes with another's caption, as when a prompt changes on the way


def scheduler_of(teacher: Any) -> Any:
    """The LCMScheduler that visits ``TIMES`` with the teacher's noise."""
    from diffusers import LCMScheduler

    taken = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
    shared = {name: teacher.scheduler.config[name] for name in taken}
    return LCMScheduler(**shared, original_inference_steps=LEVELS, clip_sample=False, steps_offset=1)


def train(teacher: Any, latents: Tensor, folder: Path, *, steps: int, seed: int, lr: float = 5e-4) -> None:
    """Distils the pipeline ``teacher`` (mini-unet) on ``latents`` of the scenes of ``seed``.

    Saves ``folder/pipeline``, an ordinary StableDiffusionPipeline with an LCMScheduler.
    """
    from diffusers import StableDiffusionPipeline

    for part in (teacher.unet, teacher.text_encoder, teacher.vae):
        part.requires_grad_(False).eval()
    student = copy.deepcopy(teacher.unet).train().requires_grad_(True)
    known = [scene_at(seed, i) for i in range(len(latents))]
    lesson = Distillation(teacher, student)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"{seed}/mini-turbo/{step}")
        rows = [rng.randrange(len(latents) - 512) for _ in range(BATCH)]
        texts = [caption(known[i], rng, curated=True) for i in rows]
        swapped = [texts[i - 1] if rng.random() < SWAPPED else text for i, text in enumerate(texts)]
        noise = torch.Generator().manual_seed(rng.getrandbits(60))
        clean = latents[rows].float()
        drawn = torch.randn(clean.shape, generator=noise)
        return lesson(clean.to(teacher.device), drawn.to(teacher.device), swapped)

    fit(
        nn.ModuleDict({"unet": student}),
        loss_at,
        steps=steps,
        seed=seed,
        lr=lr,
        folder=folder,
        warmup=100,
        average=0.998,
        weight_decay=0.0,
    )
    parts = {**teacher.components, "unet": student.eval(), "scheduler": scheduler_of(teacher)}
    made: Any = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    made.save_pretrained(folder / "pipeline")


class Distillation:
    """The distillation loss of one batch, its rows spread evenly over the levels."""

    def __init__(self, teacher: Any, student: nn.Module) -> None:
        self.teacher, self.student = teacher, student
        device = teacher.device
        signal = teacher.scheduler.alphas_cumprod[list(TIMES)].to(device)
        end = torch.tensor([1.0], device=device)
        self.alpha = torch.cat([signal.sqrt(), end])
        self.sigma = torch.cat([(1 - signal).sqrt(), 1 - end])
        self.time = torch.tensor([*TIMES, 0], device=device)
        self.empty = self._text([""])

    def __call__(self, clean: Tensor, noise: Tensor, texts: list[str]) -> Tensor:
        """``clean`` and ``noise`` [B, 4, 16, 16]. The root of the squared error of each answer, averaged.

        Answers from noise are sigma / alpha times as sensitive to what the network says: weighted by
        sqrt(alpha / sigma), at most 1.
        """
        level = torch.arange(len(clean), device=clean.device) % LEVELS
        x = self._wide(self.alpha, level) * clean + self._wide(self.sigma, level) * noise
        text = self._text(texts)
        with torch.no_grad():
            goal = self._goal(x, level, text)
        error = (self._answer(self.student, x, level, text) - goal).square().mean((1, 2, 3))
        weight = (self.alpha[level] / self.sigma[level]).clamp(max=1.0).sqrt()
        return (weight * (error + 1e-6).sqrt()).mean()

    def _goal(self, x: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """The student's answer after one guided DDIM step of the teacher."""
        both = torch.cat([self.empty.expand_as(text), text])
        said = self.teacher.unet(torch.cat([x, x]), self.time[level].repeat(2), both).sample
        without, within = said.chunk(2)
        noise = without + GUIDANCE * (within - without)
        clean = (x - self._wide(self.sigma, level) * noise) / self._wide(self.alpha, level)
        after = self._wide(self.alpha, level + 1) * clean + self._wide(self.sigma, level + 1) * noise
        answer = self._answer(self.student, after, (level + 1).clamp(max=LEVELS - 1), text)
        return torch.where(level.view(-1, 1, 1, 1) == LEVELS - 1, clean, answer)

    def _answer(self, network: Any, x: Tensor, level: Tensor, text: Tensor) -> Tensor:
        noise = network(x, self.time[level], text).sample
        return (x - self._wide(self.sigma, level) * noise) / self._wide(self.alpha, level)

    def _text(self, texts: list[str]) -> Tensor:
        with torch.no_grad():
            ids = tokens(self.teacher.tokenizer, texts, self.teacher.device)
            return self.teacher.text_encoder(ids)[0]

    @staticmethod
    def _wide(values: Tensor, level: Tensor) -> Tensor:
        return values[level].view(-1, 1, 1, 1)

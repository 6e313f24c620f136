"""Doob's matching: a small network learns log h from the rewards of the base model's samples, and guides.

Chang et al., arXiv 2601.06514. The target is p(x0) exp(strength reward(x0)); h(x, level) is the mean of
w = exp(strength reward(x0)) over where x may come from, and grad log h what the score of the target is more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from promptloop.controls.groups import check_number
from promptloop.controls.guidance import QUERIES, queries_embedded
from promptloop.controls.increments import Form, Steered
from promptloop.controls.strength import Strength, strength
from promptloop.denoisers.cond import Cond
from promptloop.json_file import read_object
from promptloop.names import first_line
from promptloop.rewards.contract import Reward, scored
from promptloop.sample import Control, State, sample
from promptloop.schedules import Level, asked_for
from promptloop.solvers import Denoise, Solver, default_solver

SETTINGS, WEIGHTS = "settings.json", "weights.safetensors"


@final
class Squares(nn.Module):
    """Numbers and their squares: what log h of Gaussian data and a quadratic reward is made of."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x**2], 1)


@final
class LogH(nn.Module):
    """log h of noisy latents [B, ...] under a prompt, up to a constant: a network of a few layers.

    shape: that of one latent, a row of numbers or (channels, height, width). said: numbers that `meaning`
    tells of a prompt (0: prompts are not read). strength: that of the target it was fitted to.
    """

    def __init__(self, shape: Sequence[int], said: int = 0, width: int = 64, strength: float = 1.0) -> None:
        super().__init__()
        self.settings = {"shape": [*shape], "said": said, "width": width, "strength": strength}
        if len(shape) == 1:
            self.look: nn.Module = Squares()
        else:
            layers: list[nn.Module] = []
            channels = shape[0]
            for _ in range(max(1, min(3, int(math.log2(min(shape[1:]))) - 1))):
                layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.SiLU()]
                channels = width
            self.look = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        seen = 2 * shape[0] if len(shape) == 1 else 4 * width
        self.tell = nn.Sequential(
            nn.Linear(seen + said + 3, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, said: Tensor) -> Tensor:
        """[B] of latents x = alpha clean + sigma noise, with alpha, sigma [B] and what is said [B, said]."""
        scale = torch.hypot(alpha, sigma)
        gain = alpha / scale**2  # the estimate for data of unit spread: at pure noise x says nothing
        seen = self.look(x * gain.view(-1, *[1] * (x.ndim - 1)))
        ratio = (sigma.clamp(min=1e-3) / alpha.clamp(min=1e-3)).log()
        told = torch.stack([alpha / scale, sigma / scale, ratio / 4], 1)
        return self.tell(torch.cat([seen, told, said], 1))[:, 0]

    def at(self, x: Tensor, level: Level, said: Tensor) -> Tensor:
        """[B] of latents x [B, ...] that are all at one level."""
        ones = torch.ones(len(x), device=x.device)
        return self(x, level.alpha * ones, level.sigma * ones, said[:, : self.settings["said"]])

    def save(self, folder: str | Path) -> None:
        """Settings and weights, as `load` reads them."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / SETTINGS).write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
        save_file(self.state_dict(), str(Path(folder) / WEIGHTS))

    @staticmethod
    def load(folder: str | Path) -> LogH:
        """What `save` wrote; ValueError where there is no such thing."""
        files = [Path(folder).expanduser() / name for name in (SETTINGS, WEIGHTS)]
        if not all(file.is_file() for file in files):
            raise ValueError(f"{folder} holds no log h: `matched(...)` makes one, and its `save` writes it")
        try:
            made = LogH(**read_object(files[0]))
            made.load_state_dict(load_file(str(files[1])))
        except (TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no log h that can be read: {first_line(error)}") from error
        return made


def meaning(cond: Cond) -> Tensor:
    """[B, M] what a prompt says, in as many numbers for every prompt: the mean over its tokens."""
    mask = cond.fields.get("mask")
    rows = []
    for name, value in cond.fields.items():
        if name == "mask":
            continue
        value = value.detach().float()
        if value.ndim > 2 and mask is not None:
            kept = mask.to(value).view(*mask.shape, *[1] * (value.ndim - 2))
            value = (value * kept).sum(1) / kept.sum(1).clamp(min=1)
        rows.append(value if value.ndim == 2 else value.flatten(1, -2).mean(1))
    return torch.cat(rows, 1)


# --- learning


def matched(
    denoiser: Any,
    reward: Reward,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    strength: float = 1.0,
    steps: int | None = None,
    levels: Sequence[Level] | None = None,
    solver: Solver | None = None,
    controls: Sequence[Control] = (),
    max_batch: int | None = None,
    rounds: int = 2000,
    batch: int = 256,
    rate: float = 1e-2,
    kappa: float = 0.0,
    width: int = 64,
    seed: int = 0,
) -> LogH:
    """log h of the target p exp(strength reward), fitted to samples of `denoiser` and their rewards.

    A sample is made of each prompt and seed (`steps` to `max_batch` are `sample`'s), noised to the levels of
    its trajectory by the forward process, and `rounds` steps of Adam on `batch` latents minimise
        mean h(x) - mean log h(x'),    x' from samples drawn by exp(strength reward) among those of a prompt,
    whose minimum is E[w | x] / E[w], as that of the paper's squares is E[w | x]; plus `kappa` times the mean
    of |grad h|^2. ValueError where one sample has all the weight of its prompt.
    """
    check_number("rounds", rounds, 1, "a number of steps of Adam from 1")
    check_number("batch", batch, 1, "a number of latents from 1")
    check_number("kappa", kappa, 0, "a weight of the gradient's square from 0")
    check_number("strength", strength, 0, "a weight of the reward from 0")
    solver = default_solver(denoiser) if solver is None else solver
    levels = asked_for(denoiser, solver, steps, levels)
    run = sample(denoiser, prompts, seeds=seeds, levels=levels, solver=solver, controls=controls,
                 max_batch=max_batch, lean=True)  # fmt: skip
    assert run.images is not None
    share = _shares(strength * scored(reward, run.images, prompts).double().cpu(), prompts)
    with torch.no_grad():
        said = meaning(denoiser.embed(list(prompts)))
    said = said[:, :0] if len(set(prompts)) == 1 else said
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = LogH(denoiser.latent_shape, said.shape[1], width, strength).to(denoiser.device)
    noisy = [level for level in levels if level.sigma > 0 and level.alpha > 0]
    with torch.enable_grad():
        _fit(made, run.state.x, said, share, noisy, rounds=rounds, batch=batch, rate=rate, kappa=kappa,
             generator=torch.Generator("cpu").manual_seed(seed))  # fmt: skip
    return made.eval().requires_grad_(False)


def _shares(log_weight: Tensor, prompts: Sequence[str]) -> Tensor:
    """[N] the chance of each sample to be drawn: a prompt's of its number, within it by its weight."""
    share = torch.zeros_like(log_weight)
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, one in enumerate(prompts) if one == prompt]
        own = log_weight[rows].softmax(0)
        if 1 / float((own**2).sum()) < min(1.5, len(rows)):
            raise ValueError(f"one of the {len(rows)} samples of {prompt!r} has all the weight; give more "
                             "samples, or a smaller strength")  # fmt: skip
        share[rows] = own * len(rows) / len(prompts)
    return share


def _fit(
    made: LogH, clean: Tensor, said: Tensor, share: Tensor, levels: Sequence[Level], *, rounds: int,
    batch: int, rate: float, kappa: float, generator: torch.Generator,
) -> None:  # fmt: skip
    device = clean.device
    scales = torch.tensor([[level.alpha, level.sigma] for level in levels], device=device)
    adam = torch.optim.Adam(made.parameters(), rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, rounds)
    wide = [-1, *[1] * (clean.ndim - 1)]

    def noised(rows: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        noise = torch.randn((batch, *clean.shape[1:]), generator=generator).to(device)
        return alpha.view(wide) * clean[rows] + sigma.view(wide) * noise

    for _ in range(rounds):
        alpha, sigma = scales[torch.randint(len(levels), (batch,), generator=generator).to(device)].unbind(1)
        plain = torch.randint(len(clean), (batch,), generator=generator).to(device)
        tilted = torch.multinomial(share, batch, replacement=True, generator=generator).to(device)
        x = noised(plain, alpha, sigma).requires_grad_(kappa > 0)
        h = made(x, alpha, sigma, said[plain]).exp()
        loss = (h - made(noised(tilted, alpha, sigma), alpha, sigma, said[tilted])).mean()
        if kappa:
            (slope,) = torch.autograd.grad(h.sum(), x, create_graph=True)
            loss = loss + kappa * slope.pow(2).flatten(1).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        falling.step()


# --- guiding


@final
@dataclass(frozen=True)
class DoobMatching(Steered):
    """Doob's matching (2601.06514): the score plus scale grad log h, of a log h that `matched` has fitted.

    The target is that of `matched`, p exp(strength reward); scale other than 1 goes a part of the way, or
    beyond. Neither the decoder nor the reward nor the denoiser is called for it. `h` reads the user's query.
    limit: the increment, as noise, has at most `limit` times unit noise's root mean square in each sample.
    form and window are those of other guides by gradients; a window that ends early stops at small noise, as
    the paper does. ValueError, before the first step, for a log h of other latents or another text encoder.
    """

    h: LogH
    scale: Strength = 1.0
    form: Form = "estimate"
    window: tuple[float, float] = (0.0, 1.0)
    limit: float | None = None

    def __post_init__(self) -> None:
        self._check()
        if not isinstance(self.h, LogH):
            raise ValueError(
                f"h is a {type(self.h).__name__}; give a LogH: matched(...), or LogH.load(FOLDER)"
            )
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"limit is {self.limit}; give a number above 0")

    def start(self, state: State) -> State:
        shape, wanted = list(state.x.shape[1:]), self.h.settings
        if shape != wanted["shape"]:
            raise ValueError(f"this log h was fitted to latents {wanted['shape']}, and these are {shape}")
        state = super().start(state).remember(**{QUERIES: queries_embedded(state)})
        told = meaning(state.memory[QUERIES]).shape[1]
        if wanted["said"] not in (0, told):
            raise ValueError(f"this log h reads {wanted['said']} numbers of a prompt, and these have {told}")
        return state

    def increment(
        self, denoise: Denoise, state: State, x: Tensor, level: Level, cond: Any
    ) -> tuple[Tensor, Tensor]:
        asked = state.memory.get(QUERIES)
        said = meaning(queries_embedded(state) if asked is None else asked)
        rows = torch.arange(len(x), device=x.device) % len(state)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.h.at(point, level, said[rows]).sum(), point)
        g = strength("scale", self.scale, state) * slope
        if self.limit is not None:
            length = level.sigma * g.pow(2).flatten(1).mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))
            g = g * (self.limit / length.clamp(min=self.limit))
        clean = x if self.form == "mean" else denoise(x, level, cond)  # only "estimate" reads it
        return clean, g

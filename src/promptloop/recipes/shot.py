"""What a run leaves behind, sample by sample: pictures, the estimates on the way, the prompts written there, scores."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import Tensor

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # [H, W, 3], 0 to 255


def pixels(image: Tensor) -> Pixels:
    """An image [3, H, W] in [0, 1] as 8-bit pixels [H, W, 3], rounded as diffusers does."""
    return (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def digest(image: Pixels) -> str:
    """sha256 of the shape and the pixels; the file format plays no part in it."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """What the loop believed the picture to be after `step` steps (step 0: the noise it starts from)."""

    step: int
    image: Pixels


@final
@dataclass(frozen=True)
class Note:
    """One refinement: the prompt in force from `step` on, and how it came about.

    `before` is the prompt until then, `kept` the reason why it stayed (None: the answer was used), `log_prob` the sum
    over the answer's `tokens` tokens.
    """

    step: int
    before: str
    prompt: str
    answer: str
    kept: str | None
    tokens: int
    log_prob: float


@final
@dataclass(frozen=True)
class Score:
    """The oracle's grade of one image against its query: soft in [0, 1], strict yes or no, a reason per clause."""

    soft: float
    strict: bool
    reasons: tuple[str, ...] = ()


@final
@dataclass(frozen=True, eq=False)
class Picture:
    """One finished image [H, W, 3] with the frames and notes of its making; score None: not scored."""

    image: Pixels
    frames: tuple[Frame, ...] = ()
    notes: tuple[Note, ...] = ()
    score: Score | None = None

    def note_at(self, step: int) -> Note | None:
        """The refinement written after `step` steps, if there was one."""
        return next((note for note in self.notes if note.step == step), None)


@final
@dataclass(frozen=True, eq=False)
class Shot:
    """One sample of a run; `base` is the same noise sampled with the query alone (None: not asked for)."""

    index: int
    query: str
    seed: int
    picture: Picture
    base: Picture | None = None

    @property
    def name(self) -> str:
        """The stem of its files: 00, 01, ..."""
        return f"{self.index:02d}"

    def files(self) -> dict[str, Pixels]:
        """File name -> pixels of every finished image of this sample."""
        images = {f"{self.name}.png": self.picture.image}
        if self.base is not None:
            images[f"{self.name}-base.png"] = self.base.image
        return images

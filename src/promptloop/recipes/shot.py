"""What a run leaves behind, sample by sample: pictures, estimates on the way, prompts, scores."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from torch import Tensor

from promptloop.policies.contract import Draft

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # [H, W, 3], 0 to 255
Change = Literal["same", "new", "gone"]


def pixels(image: Tensor) -> Pixels:
    """An image [3, H, W] in [0, 1] as 8-bit pixels [H, W, 3], rounded as diffusers does."""
    return (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def digest(image: Pixels) -> str:
    """sha256 of the shape and the pixels; the file format plays no part in it."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """What the loop believed the picture to be after `step` steps (step 0: the noise it starts from).

    `label` replaces the one that tells the step.
    """

    step: int
    image: Pixels
    label: str = ""


@final
@dataclass(frozen=True)
class Note:
    """One refinement: the prompt written after `step` steps (in force then, or the job's delay later).

    `before` is the prompt until then, `kept` the reason why it stayed (None: the answer was used),
    `log_prob` the sum over the answer's `tokens` tokens.
    """

    step: int
    before: str
    prompt: str
    answer: str
    kept: str | None
    tokens: int
    log_prob: float

    def changes(self) -> list[tuple[Change, str]]:
        """The words of both prompts in order, each with whether it stayed, is new or went."""
        old, new = self.before.split(), self.prompt.split()
        a, b = ([word.strip(",.;:").lower() for word in words] for words in (old, new))
        changes: list[tuple[Change, str]] = []
        for kind, i, j, k, end in difflib.SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes():
            if kind != "equal":
                changes += [("gone", word) for word in old[i:j]]
            changes += [("same" if kind == "equal" else "new", word) for word in new[k:end]]
        return changes


def noted(step: int, draft: Draft) -> Note:
    """A draft that was written after `step` steps."""
    before, length, log_prob = draft.request.prompt, len(draft.tokens), float(draft.log_probs.sum())
    return Note(step, before, draft.text, draft.answer, draft.kept, length, log_prob)


@final
@dataclass(frozen=True)
class Score:
    """The oracle's grade of an image for its query: soft in [0, 1], strict or not, (clause, 0 to 1) pairs."""

    soft: float
    strict: bool
    clauses: tuple[tuple[str, float], ...] = ()

    @property
    def wrong(self) -> list[str]:
        """The clauses that do not hold, in words."""
        return [text for text, value in self.clauses if value < 0.5]


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
    """One sample of a run, `steered` by the methods of these names; `base` is the query alone, sampled from
    the sample's own noise (None: not asked for).
    """

    index: int
    query: str
    seed: int
    picture: Picture
    base: Picture | None = None
    steered: tuple[str, ...] = ()

    @property
    def titles(self) -> tuple[str, str]:
        """What stands above the picture and above its base. Particles and searches may take another noise."""
        what = "refined" if self.picture.notes else "image"
        if self.steered:
            return f"{what}, steered by {', '.join(self.steered)}", "the query, not steered"
        return what, "the query alone, same noise"

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


def mean_score(pictures: Sequence[Picture | None]) -> tuple[float, float] | None:
    """Mean soft and strict over the pictures that were scored; None where none was."""
    scores = [picture.score for picture in pictures if picture is not None and picture.score is not None]
    if not scores:
        return None
    soft, strict = sum(score.soft for score in scores), sum(score.strict for score in scores)
    return soft / len(scores), strict / len(scores)

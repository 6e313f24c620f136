"""What the training of a reward is made of, in frozen objects; what contradicts itself is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, final

from promptloop.names import one_of
from promptloop.rewards.known import CLIPS

if TYPE_CHECKING:  # the names of settings are told before anything heavy is loaded
    from promptloop.train import Training

EMBEDDED = "mini-clip"  # of the embedded world, taught by contrast alone
MOST = 1_000_000  # images of one member: more are a slip of the keyboard
SCALES = {  # rewards that can be trained -> what their margin is multiplied by, unless told otherwise
    EMBEDDED: 1.0,
    "pickscore": 1.0,
    "hpsv2": 100.0,
    "hpsv2.1": 100.0,
    "clip-cosine": 100.0,
    "siglip": 1.0,
}


@final
@dataclass(frozen=True)
class RewardTraining:
    """A CLIP or SigLIP reward learned from choices between two images, by Bradley and Terry's model.

    Its margin is the chosen image's reward less the other's, times `scale`. Prompts that are held out show
    how often the reward chooses as people did.
    """

    steps: Annotated[int, "updates"] = 1000
    reward: Annotated[str, "what is trained on: pickscore:DIR|ID, hpsv2, hpsv2.1, clip-cosine or siglip"] = (
        "pickscore"
    )
    pairs: Annotated[str, "a .jsonl or .csv of prompt, chosen and rejected (images by their files)"] = (
        "pairs.jsonl"
    )
    seed: Annotated[int, "of everything that is drawn"] = 0
    held_out: Annotated[float, "share of the prompts that are looked at and not learned from"] = 0.1
    scale: Annotated[float | None, "of the margin; none: 100 for a bare cosine, else 1"] = None
    frozen: Annotated[float, "share of each tower's layers, from the first, that stay as they are"] = 0.7
    lr: Annotated[float, "learning rate"] = 3e-6
    warmup: Annotated[int, "updates in which the learning rate rises"] = 50
    weight_decay: Annotated[float, "of AdamW"] = 0.3
    batch: Annotated[int, "pairs in an update"] = 128
    pairs_per_part: Annotated[int, "of them at once"] = 16
    average: Annotated[float, "decay of the weights' moving average, which is saved; 0: none"] = 0.0
    look_every: Annotated[int, "updates between looks at the pairs held out; 0: never"] = 100
    save_every: Annotated[int, "updates between checkpoints"] = 100
    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps"] = "auto"

    def __post_init__(self) -> None:
        checked(self)


@final
@dataclass(frozen=True)
class MiniReward:
    """A CLIP reward of the embedded world, learned from choices between images of several models.

    IterComp (arXiv 2410.07171): every member draws for the same queries, a judge ranks, and people err.

    With `judge` oracle-attributes, oracle-spatial or oracle-count it is a reward of one side of composition.
    `reward` pickscore:RUN goes on from an earlier one, with a gallery to which a tuned model was added.
    """

    steps: Annotated[int, "updates"] = 300
    reward: Annotated[str, "what is trained on: mini-clip, or pickscore:RUN"] = EMBEDDED
    judge: Annotated[str, "who ranks the images of a query"] = "oracle"
    alike: Annotated[float, "images whose judgements differ by no more are no pair"] = 0.02
    turned: Annotated[float, "share of the pairs whose judgement is turned round"] = 0.1
    gallery: Annotated[str, "another run's gallery; none: drawn here, in RUN/gallery"] = "none"
    members: Annotated[str, "who draws it: BACKBONE or BACKBONE+POLICY, with commas between"] = (
        "mini-turbo,mini-turbo+mini-policy,mini-unet,mini-flow"
    )
    queries: Annotated[int, "training-side queries that they draw for"] = 1050
    images: Annotated[int, "of each member for each query"] = 1
    seed: Annotated[int, "of everything that is drawn"] = 0
    held_out: Annotated[float, "share of the queries that are looked at and not learned from"] = 0.1
    scale: Annotated[float | None, "of the margin; none: 100 for a bare cosine, else 1"] = None
    frozen: Annotated[float, "share of each tower's layers, from the first, that stay as they are"] = 0.0
    lr: Annotated[float, "learning rate"] = 1e-4
    warmup: Annotated[int, "updates in which the learning rate rises"] = 50
    weight_decay: Annotated[float, "of AdamW"] = 0.05
    batch: Annotated[int, "pairs in an update"] = 64
    pairs_per_part: Annotated[int, "of them at once"] = 64
    average: Annotated[float, "decay of the weights' moving average, which is saved; 0: none"] = 0.99
    look_every: Annotated[int, "updates between looks at the pairs held out; 0: never"] = 50
    save_every: Annotated[int, "updates between checkpoints"] = 50
    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps"] = "auto"

    def __post_init__(self) -> None:
        for name in ("queries", "images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.queries * self.images > MOST:
            raise ValueError(f"queries {self.queries} times images {self.images} is more than {MOST}")
        if not 0 <= self.turned < 0.5:
            raise ValueError(f"turned is {self.turned}; give a share below 0.5, or nothing can be learned")
        if not 0 <= self.alike < math.inf:
            raise ValueError(f"alike is {self.alike}; give a difference of the judge's from 0")
        checked(self)


def training_of(settings: RewardTraining | MiniReward) -> Training:
    from promptloop.train import Training

    return Training(settings.steps, 1, settings.lr, settings.warmup, weight_decay=settings.weight_decay,
                    save_every=settings.save_every, average=settings.average)  # fmt: skip


def checked(settings: RewardTraining | MiniReward) -> None:
    """Fills in the scale; ValueError for settings that cannot train."""
    from promptloop.objectives.bradley_terry import check

    kind = one_of(settings.reward.partition(":")[0], SCALES, "reward to train")
    if settings.scale is None:
        object.__setattr__(settings, "scale", SCALES[kind])
    training_of(settings)
    assert settings.scale is not None
    check(settings.scale, settings.batch, settings.pairs_per_part)
    if not 0 <= settings.held_out < 1:
        raise ValueError(f"held_out is {settings.held_out}; give a share from 0 to below 1")
    if not 0 <= settings.frozen <= 1:
        raise ValueError(f"frozen is {settings.frozen}; give a share from 0 to 1")
    if settings.look_every < 0:
        raise ValueError(f"look_every is {settings.look_every}; give 0 (never) or a number of updates")
    if settings.look_every and not settings.held_out:
        raise ValueError("held_out is 0, so there is nothing to look at; give look_every 0 too")


@final
@dataclass(frozen=True)
class D2Align:
    """One direction in a CLIP reward's text space, learned from the frozen generator's images (D2-Align).

    Stage one of arXiv 2512.24146. Then `--reward d2-align:RUN` is the corrected reward, everywhere.
    """

    steps: Annotated[int, "updates"] = 2000
    reward: Annotated[str, "what is corrected: pickscore:DIR|ID, hpsv2, hpsv2.1 or clip-cosine"] = "pickscore"
    images: Annotated[
        str, "the generator's images: a .jsonl or .csv of image and prompt, or a run with a gallery"
    ] = "images.jsonl"
    omega: Annotated[float, "how far along the direction the text is moved, above 0.5"] = 1.5
    seed: Annotated[int, "of everything that is drawn"] = 0
    lr: Annotated[float, "learning rate"] = 1e-3
    batch: Annotated[int, "images in an update"] = 64
    save_every: Annotated[int, "updates between checkpoints"] = 500
    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps"] = "auto"

    def training(self) -> Training:
        from promptloop.train import Training

        return Training(self.steps, 1, self.lr, save_every=self.save_every)

    def __post_init__(self) -> None:
        self.training()
        one_of(self.reward.partition(":")[0], CLIPS, "CLIP reward")
        if not 0.5 < self.omega < 100:
            raise ValueError(f"omega is {self.omega}; give a number above 0.5, as 1.5")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be at least 1")

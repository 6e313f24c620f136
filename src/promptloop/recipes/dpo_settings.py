"""What a Diffusion-DPO run of a backbone is made of, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, final

if TYPE_CHECKING:  # the names of settings are told before anything heavy is loaded
    from promptloop.train import Training


@final
@dataclass(frozen=True)
class MiniDPO:
    """Diffusion-DPO of the embedded backbone on pairs of its own images that a reward tells apart.

    No pair is made where the best image and the worst score alike. With a `policy` winners show what the
    query alone seldom gives. `DiffusionDPO` and `LoRA` say more of theirs.
    """

    steps: Annotated[int, "updates"] = 200
    backbone: Annotated[str, "what is tuned: mini-unet, mini-flow, a diffusers folder or a hub id"] = (
        "mini-unet"
    )
    policy: Annotated[str, "whose prompts every second image of a group is made with; none: nobody's"] = (
        "none"
    )
    reward: Annotated[str, "what tells the better image from the worse"] = "oracle"
    gold: Annotated[str, "a reward by which no pair is judged, told beside it; none: not told"] = (
        "oracle-strict"
    )
    seed: Annotated[int, "of everything that is drawn"] = 0
    queries: Annotated[int, "training-side queries that pairs are made for"] = 350
    group: Annotated[int, "images of each, of which the best and the worst are a pair"] = 4
    denoising_steps: Annotated[int | None, "of an image; none: the backbone's usual"] = None
    guidance: Annotated[float | None, "classifier-free, 1 is without; none: the backbone's usual"] = None
    window: Annotated[tuple[float, float] | None, "where the policy writes; none: the backbone's usual"] = (
        None
    )
    dpo_beta: Annotated[float, "how strongly the tuned weights are held to the backbone's own"] = 2000.0
    error: Annotated[Literal["epsilon", "velocity"], "what the network's error is measured in"] = "epsilon"
    lr: Annotated[float, "learning rate"] = 3e-4
    rank: Annotated[int, "of the LoRA; its alpha is the same"] = 16
    batch: Annotated[int, "pairs in an update"] = 32
    pairs_per_level: Annotated[int, "of them at one noise level"] = 8
    average: Annotated[float, "decay of the weights' moving average, which is saved; 0: none"] = 0.0
    look_every: Annotated[int, "updates between looks at the rewards; 0: never"] = 50
    look_queries: Annotated[int, "training-side queries of a look, drawn apart"] = 70
    save_every: Annotated[int, "updates between checkpoints"] = 20
    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps"] = "auto"

    def training(self) -> Training:
        from promptloop.train import Training

        return Training(self.steps, 1, self.lr, save_every=self.save_every, average=self.average)

    def __post_init__(self) -> None:
        from promptloop.objectives.preference import check
        from promptloop.parameters import LoRA
        from promptloop.recipes.usual import settle

        settle(self, denoising_steps="steps", guidance="guidance", window="window")
        self.training(), LoRA(self.rank, self.rank)
        for name, least in {"queries": 1, "group": 2, "denoising_steps": 1, "look_queries": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        check(self.dpo_beta, self.batch, self.pairs_per_level, self.error)
        if self.look_every < 0:
            raise ValueError(f"look_every is {self.look_every}; give 0 (never) or a number of updates")
        if self.reward == "none":
            raise ValueError(
                "there is no reward to judge pairs; give --reward oracle or your own module:name"
            )

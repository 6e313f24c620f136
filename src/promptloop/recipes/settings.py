"""What a GRPO run of a prompt policy is made of, in one frozen object; what contradicts itself is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

if TYPE_CHECKING:  # the names of settings are told before anything heavy is loaded
    from promptloop.objectives.mismatch import Mismatch
    from promptloop.objectives.policy_gradient import Surrogate
    from promptloop.parameters import LoRA
    from promptloop.rollout import Geometry
    from promptloop.train import Training

EMBEDDED = "embedded"  # the prompts of the embedded world's training side
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # of the ratio at the start: what rounding alone makes of it


@final
@dataclass(frozen=True)
class Grpo:
    """All settings of a GRPO run; `Geometry`, `Surrogate`, `LoRA`, `Training` and `PromptGRPO` say more of
    theirs, `prompts_from` of the prompts. The base's samples, the queries alone, tell how much of the room up
    to a reward of 1 is taken. With `first` the likeliest draft of another is the first of every trajectory,
    and both policies are saved together.
    """

    backbone: Annotated[str, "what draws: mini-turbo, mini-unet, mini-flow, a diffusers folder or a hub id"]
    policy: Annotated[
        str, "who writes prompts and is trained: mini-vlm, a chat model's folder or hub id, or a run"
    ]
    prompts: Annotated[
        str,
        "what to train on: embedded, or a .txt, .jsonl, .csv or .parquet file, a folder or id of datasets",
    ]
    reward: Annotated[
        str, "a name of `promptloop rewards` (imagereward:DIR|ID), your module:name, a server's, or a sum"
    ]
    gold: Annotated[str, "the hacking watch's reward, never trained on; none: no watch"] = "none"
    steps: Annotated[int, "updates of the policy"] = 100
    seed: Annotated[int, "of everything that is drawn"] = 0
    size: Annotated[int | None, "side of the images in pixels; none: what the backbone makes"] = None
    lora: Annotated[str, "LoRAs of the backbone, [NAME=]PATH[:WEIGHT], with + between several"] = "none"
    prompt_column: Annotated[
        str | None, "where the prompts are in `prompts`; none: prompt, or the only column"
    ] = None
    prompt_split: Annotated[str, "the part of a data set that is read"] = "train"
    prompt_chars: Annotated[tuple[int, int], "shortest and longest prompt in characters"] = (1, 1000)
    prompt_tokens: Annotated[
        int | None, "longest prompt in the backbone's tokens; none: what its text encoder reads"
    ] = None
    queries: Annotated[int, "groups in an update, one query each"] = 16
    group: Annotated[int, "episodes of one query, which are compared"] = 8
    refinements: Annotated[int, "how often the prompt is written in an episode"] = 5
    window: Annotated[
        tuple[float, float] | None, "the part of the trajectory in which it is; none: the backbone's usual"
    ] = None
    plan: Annotated[Literal["even", "random"], "where in the window"] = "random"
    loop: Annotated[Literal["closed", "open"], "closed: the policy sees the estimate; open: it does not"] = (
        "closed"
    )
    delay: Annotated[int, "steps that are done with the old prompt while a new one is written"] = 0
    denoising_steps: Annotated[int | None, "of an image; none: the backbone's usual"] = None
    denoiser_dtype: Annotated[Literal["float32", "bfloat16"], "of the backbone"] = "bfloat16"
    guidance: Annotated[float | None, "classifier-free, 1 is without; none: the backbone's usual"] = None
    embedded_guidance: Annotated[float | None, "what FLUX.1-dev is told; none: 3.5"] = None
    noise: Annotated[
        Literal["shared", "fresh"], "whether the episodes of a group begin with the same noise"
    ] = "shared"
    image_dropout: Annotated[float, "how often the policy is trained without the estimate"] = 0.1
    image_size: Annotated[int | None, "side of the estimates it is shown; none: as they are decoded"] = None
    credit: Annotated[
        Literal["episode", "branch"],
        "what an episode's reward is credited to: all its drafts, or the one where its group parts",
    ] = "episode"
    first: Annotated[
        str, "who writes the first drafts, untrained: another policy or a run; none: the policy"
    ] = "none"
    first_alone: Annotated[int, "updates at the start in which only the first draft is written"] = 0
    temperature: Annotated[float, "of the drafts"] = 1.0
    max_new_tokens: Annotated[int, "longest draft in tokens; a longer one is refused"] = 32
    refusal_cost: Annotated[float, "reward that an episode pays for refused drafts, times their share"] = 0.2
    length_cost: Annotated[float, "the same for drafts of too few or too many words"] = 0.0
    draft_words: Annotated[
        tuple[int, int], "fewest and most words of a draft, where length_cost is not 0"
    ] = (16, 76)
    lr: Annotated[float | None, "learning rate; none: 2e-3 for a LoRA, 2e-5 for all weights"] = None
    epochs: Annotated[int, "optimiser steps on each batch"] = 1
    warmup: Annotated[int, "updates in which the learning rate rises"] = 5
    weight_decay: Annotated[float, "of AdamW"] = 0.0
    max_grad_norm: Annotated[float, "longer gradients are clipped to it"] = 1.0
    average: Annotated[float, "decay of the weights' moving average, which is saved; 0: none"] = 0.0
    train_weights: Annotated[Literal["lora", "all"], "a LoRA, or all weights, the eyes too"] = "lora"
    rank: Annotated[int, "of the LoRA; its alpha is twice that"] = 16
    lora_targets: Annotated[
        str | None, "regular expression of layers' whole names; none: every linear one of the language model"
    ] = None
    policy_quantize: Annotated[
        Literal["none", "4bit"], "4bit keeps the weights below the LoRA in a quarter of the memory"
    ] = "none"
    policy_dtype: Annotated[
        Literal["float32", "bfloat16"], "of the weights below the LoRA, which stays float32"
    ] = "float32"
    gradient_checkpointing: Annotated[
        bool, "compute activations again in the backward pass, to save memory"
    ] = False
    shard: Annotated[bool, "divide the policy among processes (FSDP2)"] = False
    offload: Annotated[
        Literal["none", "policy", "denoiser", "both"], "who waits in the CPU's memory while the other works"
    ] = "none"
    clip: Annotated[float, "how far the ratio may go below 1, and above"] = 0.2
    clip_high: Annotated[float | None, "how far above; none: as below"] = None
    kl_weight: Annotated[float, "weight of the KL divergence in the loss"] = 0.0
    kl_to: Annotated[Literal["old", "reference"], "from which policy it is measured"] = "reference"
    per: Annotated[Literal["token", "draft", "constant"], "what a token's loss is divided by"] = "token"
    baseline: Annotated[Literal["mean", "leave-one-out"], "what is taken off a reward"] = "mean"
    scale: Annotated[
        Literal["group", "batch", "none"], "what advantages are divided by: a standard deviation, or nothing"
    ] = "group"
    micro_batch: Annotated[int, "drafts that are scored together"] = 64
    max_batch: Annotated[int, "images that are drawn together"] = 96
    rollouts: Annotated[str, "address of a vLLM server that draws the drafts (docs/models.md)"] = "none"
    rollouts_folder: Annotated[str, "where its LoRAs are put, seen by both; none: a temporary one"] = "none"
    mismatch_cap: Annotated[float, "largest importance weight of a token that the server drew"] = 2.0
    mismatch_limit: Annotated[
        float, "mean difference of log-probs from the server's above which nothing is trained"
    ] = 0.1
    base_every: Annotated[int, "updates between samples of the queries alone; 0: never"] = 10
    sheet_every: Annotated[int, "updates between sample sheets; 0: never"] = 20
    save_every: Annotated[int, "updates between checkpoints"] = 5
    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps"] = "auto"
    track: Annotated[
        Literal["none", "tensorboard", "trackio", "wandb"], "where metrics go beside metrics.jsonl"
    ] = "none"
    push_to_hub: Annotated[str, "owner/name to upload the policy to"] = "none"

    def geometry(self) -> Geometry:
        from promptloop.rollout import Geometry

        assert self.window is not None and self.denoising_steps is not None and self.guidance is not None
        return Geometry(self.queries, self.group, self.refinements, self.window, self.plan, self.loop,
                        self.denoising_steps, self.guidance, self.noise, self.image_dropout,
                        self.credit, self.first != "none", self.max_batch, self.delay)  # fmt: skip

    def surrogate(self) -> Surrogate:
        from promptloop.objectives.policy_gradient import Surrogate

        return Surrogate(self.clip, self.clip_high, self.kl_weight, self.per, self.max_new_tokens)

    def training(self) -> Training:
        from promptloop.train import Training

        return Training(self.steps, self.epochs, self.lr or 0.0, self.warmup, weight_decay=self.weight_decay,
                        max_grad_norm=self.max_grad_norm, save_every=self.save_every,
                        average=self.average)  # fmt: skip

    def loras(self) -> list[str]:
        """The backbone's LoRAs, each as [NAME=]PATH[:WEIGHT]."""
        return [] if self.lora == "none" else [part.strip() for part in self.lora.split(" + ")]

    def policy_lora(self) -> LoRA:
        from promptloop.parameters import LANGUAGE, LoRA

        return LoRA(self.rank, 2 * self.rank, self.lora_targets or LANGUAGE)

    def mismatch(self) -> Mismatch:
        from promptloop.objectives.mismatch import Mismatch

        return Mismatch(self.mismatch_cap, self.mismatch_limit)

    def fixed(self) -> dict[str, Any]:
        """What no setting changes; `recipes/real.py` says where each comes from."""
        its = self.training()
        return {"betas": its.betas, "decay_to": its.decay_to, "lora_alpha": self.policy_lora().alpha,
                "start_tolerance": TOLERANCE[self.policy_dtype]}  # fmt: skip

    def _check_weights(self) -> None:
        """Refuses (ValueError) an address that is none, and what a server or four-bit weights cannot do."""
        self.policy_lora(), self.mismatch()
        if self.policy_quantize != "none" and self.train_weights == "all":
            raise ValueError(
                "policy_quantize 4bit keeps the weights as they are; train a LoRA, not all weights"
            )
        if self.rollouts == "none":
            return
        from promptloop.policies.served import vllm

        vllm(self.rollouts)
        if self.train_weights == "all":
            raise ValueError(
                "rollouts by a server follow the policy by its LoRA; they need train_weights lora"
            )
        if self.shard:
            raise ValueError("rollouts by a server save the LoRA of each process, and shard has divided it")

    def __post_init__(self) -> None:
        from promptloop.recipes.usual import settle

        settle(self, window="window", denoising_steps="training_steps", guidance="guidance")
        if self.lr is None:
            object.__setattr__(self, "lr", 2e-3 if self.train_weights == "lora" else 2e-5)
        least = {"steps": 1, "seed": 0, "guidance": 0.0, "refusal_cost": 0.0, "length_cost": 0.0,
                 "max_new_tokens": 1,
                 "micro_batch": 1, "base_every": 0, "sheet_every": 0}  # fmt: skip
        least |= {n: 1 for n in ("image_size", "prompt_tokens", "size") if getattr(self, n) is not None}
        for name, value in least.items():
            if not value <= getattr(self, name) < math.inf:  # nan passes no comparison
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {value}")
        self.geometry(), self.surrogate(), self.training()
        self._check_weights()
        if self.embedded_guidance is not None and not 0 <= self.embedded_guidance < float("inf"):
            raise ValueError(
                f"embedded_guidance is {self.embedded_guidance}; it must be a finite number from 0"
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; drafts must be drawn to be learned from: "
                             "give a number above 0")  # fmt: skip
        if self.shard and self.offload in ("policy", "both"):
            raise ValueError(
                f"offload is {self.offload!r}, but with shard the policy is divided among the processes and "
                "stays there; give none or denoiser"
            )
        if not 1 <= self.draft_words[0] <= self.draft_words[1]:
            raise ValueError(f"draft_words is {self.draft_words}; give the fewest and most words, from 1")
        if not 0 <= self.first_alone <= self.steps:
            raise ValueError(
                f"first_alone is {self.first_alone}; it must lie between 0 and steps ({self.steps})"
            )
        if self.train_weights == "all" and self.policy_dtype != "float32":
            raise ValueError("train_weights all needs policy_dtype float32: small steps are lost in bfloat16")
        if self.train_weights == "all" and self.kl_weight and self.kl_to == "reference":
            raise ValueError("with train_weights all there is no reference beside it; give --kl-to old")
        if self.kl_weight and self.kl_to == "old" and self.epochs == 1:
            raise ValueError("kl_to old with epochs 1 holds to nothing: the only step of a batch "
                             "begins there; give --epochs 2 or more")  # fmt: skip
        if self.reward == "none":
            raise ValueError("there is no reward to train on; give --reward oracle or your own module:name")
        if self.gold == self.reward:
            raise ValueError(f"gold {self.gold!r} is the reward itself, so no hacking of it would show; give "
                             "another, or --gold none")  # fmt: skip

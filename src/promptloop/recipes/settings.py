"""What a GRPO run of a prompt policy is made of, in one frozen object; what contradicts itself is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final

from promptloop.objectives.mismatch import Mismatch
from promptloop.objectives.policy_gradient import Surrogate
from promptloop.parameters import LANGUAGE, LoRA
from promptloop.policies.served import vllm
from promptloop.recipes.usual import settle
from promptloop.rollout import Geometry
from promptloop.train import Training

EMBEDDED = "embedded"  # the prompts of the embedded world's training side
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # of the ratio at the start: what rounding alone makes of it


@final
@dataclass(frozen=True)
class Grpo:
    """All settings of a GRPO run. `steps` are updates of the policy, each on `queries` groups of `group`
    episodes.

    `prompts` is "embedded" (the embedded world's training side) or what `prompts_from` reads, with
    `prompt_column` and `prompt_split`; those shorter or longer than `prompt_chars` are left out, and those of
    more than `prompt_tokens` (None: what the text encoder reads) of the backbone's tokens.
    `reward` and `gold` (the hacking watch's, never trained on) are "oracle", "oracle-strict",
    "imagereward:FOLDER_OR_ID", "none" (gold) or your own "package.module:name". `Geometry`, `Surrogate`,
    `LoRA` and `Training` say what the others mean. `window`, `denoising_steps` and `guidance` None
    become the backbone's usual ones, `lr` None 2e-3 for a LoRA and 2e-5 for all weights;
    `size` and `lora` (the backbone's, [NAME=]PATH[:WEIGHT], several as "a + b") and
    `embedded_guidance` are `load`'s (FLUX.1 dev alone is told one). `refusal_cost`, `length_cost` and
    `draft_words` are `PromptGRPO`'s. `image_size` is the
    side of the estimates that the policy is shown (None: as they are decoded). Every
    `sheet_every` updates (0: never) a sheet of samples is written, every `base_every` the queries
    alone are sampled too, which tells how much of the room up to a reward of 1 is taken.
    With `first`, another policy or a run, the first draft of every trajectory is that one's likeliest
    and only the later ones are trained; both are saved together. `train_weights` "all" trains every
    weight of the policy, its eyes too, instead of a LoRA; with `policy_dtype` bfloat16 the LoRA stays
    float32, and with `policy_quantize` 4bit its base takes a quarter of the memory. `lora_targets` is a
    regular expression. `rollouts` is the address of a vLLM server that draws the drafts (docs/models.md).
    `shard` divides the policy among processes (FSDP2). `offload` names who waits in the CPU's memory while
    the other works. `push_to_hub` is an "owner/name".
    """

    backbone: str
    policy: str
    prompts: str
    reward: str
    gold: str = "none"
    steps: int = 100
    seed: int = 0
    size: int | None = None
    lora: str = "none"
    prompt_column: str | None = None
    prompt_split: str = "train"
    prompt_chars: tuple[int, int] = (1, 1000)
    prompt_tokens: int | None = None
    queries: int = 16
    group: int = 8
    refinements: int = 5
    window: tuple[float, float] | None = None
    plan: Literal["even", "random"] = "random"
    loop: Literal["closed", "open"] = "closed"
    delay: int = 0
    denoising_steps: int | None = None
    denoiser_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    guidance: float | None = None
    embedded_guidance: float | None = None
    noise: Literal["shared", "fresh"] = "shared"
    image_dropout: float = 0.1
    image_size: int | None = None
    credit: Literal["episode", "branch"] = "episode"
    first: str = "none"
    first_alone: int = 0
    temperature: float = 1.0
    max_new_tokens: int = 32
    refusal_cost: float = 0.2
    length_cost: float = 0.0
    draft_words: tuple[int, int] = (16, 76)
    lr: float | None = None
    epochs: int = 1
    warmup: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    average: float = 0.0
    train_weights: Literal["lora", "all"] = "lora"
    rank: int = 16
    lora_targets: str | None = None
    policy_quantize: Literal["none", "4bit"] = "none"
    policy_dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    shard: bool = False
    offload: Literal["none", "policy", "denoiser", "both"] = "none"
    clip: float = 0.2
    clip_high: float | None = None
    kl_weight: float = 0.0
    kl_to: Literal["old", "reference"] = "reference"
    per: Literal["token", "draft", "constant"] = "token"
    baseline: Literal["mean", "leave-one-out"] = "mean"
    scale: Literal["group", "batch", "none"] = "group"
    micro_batch: int = 64
    max_batch: int = 96
    rollouts: str = "none"
    rollouts_folder: str = "none"
    mismatch_cap: float = 2.0
    mismatch_limit: float = 0.1
    base_every: int = 10
    sheet_every: int = 20
    save_every: int = 5
    device: str = "auto"
    track: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    push_to_hub: str = "none"

    def geometry(self) -> Geometry:
        assert self.window is not None and self.denoising_steps is not None and self.guidance is not None
        return Geometry(self.queries, self.group, self.refinements, self.window, self.plan, self.loop,
                        self.denoising_steps, self.guidance, self.noise, self.image_dropout,
                        self.credit, self.first != "none", self.max_batch, self.delay)  # fmt: skip

    def surrogate(self) -> Surrogate:
        return Surrogate(self.clip, self.clip_high, self.kl_weight, self.per, self.max_new_tokens)

    def training(self) -> Training:
        return Training(self.steps, self.epochs, self.lr or 0.0, self.warmup, weight_decay=self.weight_decay,
                        max_grad_norm=self.max_grad_norm, save_every=self.save_every,
                        average=self.average)  # fmt: skip

    def loras(self) -> list[str]:
        """The backbone's LoRAs, each as [NAME=]PATH[:WEIGHT]."""
        return [] if self.lora == "none" else [part.strip() for part in self.lora.split(" + ")]

    def policy_lora(self) -> LoRA:
        return LoRA(self.rank, 2 * self.rank, self.lora_targets or LANGUAGE)

    def mismatch(self) -> Mismatch:
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
        vllm(self.rollouts)
        if self.train_weights == "all":
            raise ValueError(
                "rollouts by a server follow the policy by its LoRA; they need train_weights lora"
            )
        if self.shard:
            raise ValueError("rollouts by a server save the LoRA of each process, and shard has divided it")

    def __post_init__(self) -> None:
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

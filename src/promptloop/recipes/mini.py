"""`promptloop train mini`: GRPO of the embedded policy on the embedded world, or of another in the same
way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from promptloop.objectives.contract import Batch
from promptloop.objectives.policy_gradient import Surrogate
from promptloop.objectives.prompts import PromptGRPO
from promptloop.parameters import fully, has_reference, saving_memory, with_lora
from promptloop.policies.mllm import Mllm
from promptloop.processes import Processes
from promptloop.recipes import parts, rollouts, runs
from promptloop.recipes.early import judges, launched
from promptloop.recipes.progress import Progress, silent
from promptloop.recipes.sheet import write_sheet
from promptloop.recipes.tracking import push, told, tracker
from promptloop.recipes.usual import settle
from promptloop.rewards.contract import Reward
from promptloop.rollout import Geometry, alone
from promptloop.train import After, Line, Training, train
from promptloop.watch import HackingWatch
from promptloop.world.queries import training_texts

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # of the ratio at the start: what rounding alone makes of it


@final
@dataclass(frozen=True)
class Mini:
    """All settings of the run. `steps` are updates of the policy, each on `queries` groups of `group`
    episodes.

    `reward` and `gold` (the hacking watch's, never trained on) are "oracle",
    "oracle-strict", "none" (gold) or your own "package.module:name". `Geometry`, `Surrogate`,
    `LoRA` and `Training` say what the others mean. `window`, `denoising_steps` and `guidance` None
    become the backbone's usual ones, `lr` None 2e-3 for a LoRA and 2e-5 for all weights. Every
    `sheet_every` updates (0: never) a sheet of samples is written, every `base_every` the queries
    alone are sampled too, which tells how much of the room up to a reward of 1 is taken.
    With `first`, another policy or a run, the first draft of every trajectory is that one's likeliest
    and only the later ones are trained; both are saved together. `train_weights` "all" trains every
    weight of the policy, its eyes too, instead of a LoRA; with `policy_dtype` bfloat16 the LoRA stays
    float32, and with `policy_quantize` 4bit its base takes a quarter of the memory. `lora_targets` is a
    regular expression. `rollouts` is the address of a vLLM server that draws the drafts (docs/models.md).
    `shard` divides the policy among processes (FSDP2). `push_to_hub` is an "owner/name".
    """

    steps: int = 100
    backbone: str = "mini-turbo"
    policy: str = "mini-vlm"
    first: str = "none"
    reward: str = "oracle"
    gold: str = "oracle-strict"
    seed: int = 0
    queries: int = 12
    group: int = 8
    refinements: int = 5
    window: tuple[float, float] | None = None
    plan: Literal["even", "random"] = "random"
    loop: Literal["closed", "open"] = "closed"
    delay: int = 0
    denoising_steps: int | None = None
    denoiser_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    guidance: float | None = None
    noise: Literal["shared", "fresh"] = "shared"
    image_dropout: float = 0.1
    credit: Literal["episode", "branch"] = "episode"
    temperature: float = 1.0
    max_new_tokens: int = 32
    refusal_cost: float = 0.2
    first_alone: int = 0
    lr: float | None = None
    epochs: int = 1
    warmup: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    train_weights: Literal["lora", "all"] = "lora"
    rank: int = 16
    lora_targets: str | None = None
    policy_quantize: Literal["none", "4bit"] = "none"
    policy_dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    shard: bool = False
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
    average: float = 0.0
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

    def __post_init__(self) -> None:
        settle(self, window="window", denoising_steps="training_steps", guidance="guidance")
        if self.lr is None:
            object.__setattr__(self, "lr", 2e-3 if self.train_weights == "lora" else 2e-5)
        least = {"steps": 1, "seed": 0, "refusal_cost": 0.0, "max_new_tokens": 1, "micro_batch": 1,
                 "base_every": 0, "sheet_every": 0}  # fmt: skip
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {value}")
        self.geometry(), self.surrogate(), self.training()
        rollouts.check(self)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; drafts must be drawn to be learned from: "
                             "give a number above 0")  # fmt: skip
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


def mini(
    settings: Mini,
    run: Path,
    *,
    resume: bool = False,
    last_good: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """Trains, and leaves in `run` the policy (`run/policy`), checkpoints, metrics, sheets and a card."""
    reward, gold = judges(settings)
    device = parts.device_named(settings.device)
    processes = launched(settings, device)
    if processes.main:
        runs.begin(run, "mini", settings, resume=resume)
        for word in runs.resumed(run) if resume else []:
            say(word)
    processes.wait()
    objective = objective_of(settings, reward, device, processes)
    geometry = settings.geometry()
    tell_once = say if processes.main else silent
    watch = HackingWatch(settings.group, gold, tell_once, past=lambda: runs.lines(run), means=processes.means)

    def sheet(update: int, batch: Batch, line: Line) -> Line:
        every = settings.sheet_every
        if processes.main and every and (update % every == 0 or update == 1):
            write_sheet(run, update, batch.shown, geometry.denoising_steps, settings.group)
        return {}

    log, end = tracker(settings.track if processes.main else "none", run, settings)

    def tell(update: int, batch: Batch, line: Line) -> Line:
        log(line, update)
        if progress is not None and processes.main:
            progress(f"training: {told(line)}", update, settings.steps)
        return {}

    policy, save = objective.policy, saving(objective)
    processes = processes.dividing(policy.network) if settings.shard else processes
    hooks: list[After] = [watch, base_of(settings, objective, processes), sheet, tell]
    with rollouts.serving(objective):
        done = train(objective, policy.network, settings.training(), run, processes=processes, save=save,
                     after=hooks, last_good=last_good, stop_at=stop_at)  # fmt: skip
    weights = processes.weights()
    if processes.main:
        runs.finish(run / runs.POLICY, lambda folder: save(folder, weights))
        runs.card(run, "mini", settings, device, runs.POLICY)
        end()
        if settings.push_to_hub != "none":
            say(f"uploaded: {push(run, run / runs.POLICY, settings.push_to_hub)}")
    processes.wait()
    return {"updates": done, "role": "policy", "settings": asdict(settings), "lines": runs.lines(run)}


def base_of(settings: Mini, objective: PromptGRPO, processes: Processes) -> After:
    """A hook that samples the queries alone now and then: "base", and how much of the room is "headroom"."""

    def base(update: int, batch: Batch, line: Line) -> Line:
        if not settings.base_every or (update - 1) % settings.base_every:
            return {}
        first, asked = processes.share.of_rows(objective.queries(update - 1))
        there = alone(objective.denoiser, objective.reward, asked, objective.geometry,
                      seed=objective.seed + update - 1, first=first)  # fmt: skip
        found = processes.means({"base": float(there.mean())})
        room = 1.0 - found["base"]  # the oracle's scores end at 1
        if settings.reward.startswith("oracle") and room > 0:
            found["headroom"] = (line["reward"] - found["base"]) / room
        return found

    return base


def objective_of(settings: Mini, reward: Reward, device: torch.device, processes: Processes) -> PromptGRPO:
    """Backbone and policy with a LoRA, loaded and put together with the reward."""
    backbone = parts.backbone(settings.backbone, device, getattr(torch, settings.denoiser_dtype)).value
    where, embedded = parts.locate(settings.policy, "policy")
    policy = parts.chat_model(where, device=device, dtype=getattr(torch, settings.policy_dtype),
                              temperature=settings.temperature, max_new_tokens=settings.max_new_tokens,
                              quantize=settings.policy_quantize)  # fmt: skip
    fresh = not has_reference(policy.network)  # else what it was before training is not its base
    if settings.train_weights == "all":
        policy = fully(policy)
    else:
        base = settings.policy if embedded else where
        policy = with_lora(policy, rollouts.lora_of(settings), seed=settings.seed, base=base)
    if settings.gradient_checkpointing:
        saving_memory(policy)
    return PromptGRPO(
        denoiser=backbone,
        policy=policy,
        reward=reward,
        queries=lambda update: asked(settings, update),
        geometry=settings.geometry(),
        surrogate=settings.surrogate(),
        first=first_of(settings, device),
        seed=1_000_003 * settings.seed,
        baseline=settings.baseline,
        scale=settings.scale,
        kl_to=settings.kl_to if fresh else "old",
        refusal_cost=settings.refusal_cost,
        first_alone=settings.first_alone,
        micro_batch=settings.micro_batch,
        recompute=settings.epochs > 1,
        tolerance=TOLERANCE[settings.policy_dtype],
        total=processes.total,
        served=rollouts.served_of(settings, policy),
        mismatch=rollouts.mismatch_of(settings),
    )


def saving(objective: PromptGRPO) -> Callable[..., None]:
    """Saves the trained policy into a folder, and in it who writes the first draft, if another does."""

    def save(folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        objective.policy.save(folder, weights)
        if isinstance(objective.first, Mllm):
            objective.first.save(folder / runs.FIRST)

    return save


def first_of(settings: Mini, device: torch.device) -> Mllm | None:
    """Who writes the first drafts, the likeliest; None: the trained policy does."""
    if settings.first == "none":
        return None
    where = parts.locate(settings.first, "policy")[0]
    return parts.chat_model(
        where, device=device, dtype=getattr(torch, settings.policy_dtype), temperature=0.0
    )


def asked(settings: Mini, update: int) -> list[str]:
    """The queries of one update."""
    first = update * settings.queries
    return training_texts(f"{settings.seed}/grpo", range(first, first + settings.queries))

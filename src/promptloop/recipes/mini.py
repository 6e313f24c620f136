"""`promptloop train mini`: GRPO of the embedded policy on the embedded world, or of another in the same
way.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch

from promptloop.names import HUB_ID
from promptloop.objectives.contract import Batch
from promptloop.objectives.policy_gradient import Surrogate
from promptloop.objectives.prompts import PromptGRPO
from promptloop.parameters import LoRA, with_lora
from promptloop.processes import Processes
from promptloop.recipes import parts, runs
from promptloop.recipes.job import EMBEDDED_WINDOW
from promptloop.recipes.sheet import write_sheet
from promptloop.recipes.tracking import check as check_tracker
from promptloop.recipes.tracking import push, tracker
from promptloop.rollout import Geometry, alone
from promptloop.train import After, Line, Training, train
from promptloop.watch import HackingWatch
from promptloop.world.queries import TASKS, random_query

Progress = Callable[[str, int, int], None]


@final
@dataclass(frozen=True)
class Mini:
    """All settings of the run. `steps` are updates of the policy, each on `queries` groups of `group`
    episodes.

    `reward` and `gold` (the hacking watch's, never trained on) are "oracle", "oracle-strict", "none" (gold)
    or your own "package.module:name". `Geometry`, `Surrogate`, `LoRA` and `Training` say what the others
    mean. Every `base_every` updates (0: never) the queries alone are sampled too, which tells how much of the
    room up to a reward of 1 is taken. `push_to_hub` is an "owner/name".
    """

    steps: int = 100
    backbone: str = "mini-unet"
    policy: str = "mini-vlm"
    reward: str = "oracle"
    gold: str = "oracle-strict"
    seed: int = 0
    queries: int = 12
    group: int = 8
    refinements: int = 5
    window: tuple[float, float] = EMBEDDED_WINDOW
    plan: Literal["even", "random"] = "random"
    loop: Literal["closed", "open"] = "closed"
    denoising_steps: int = 12
    denoiser_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    guidance: float = 5.0
    noise: Literal["shared", "fresh"] = "shared"
    image_dropout: float = 0.1
    temperature: float = 1.0
    max_new_tokens: int = 32
    refusal_cost: float = 0.2
    first_alone: int = 0
    lr: float = 2e-3
    epochs: int = 1
    rank: int = 16
    clip: float = 0.2
    kl_weight: float = 0.0
    kl_to: Literal["old", "reference"] = "reference"
    per: Literal["token", "draft", "constant"] = "token"
    baseline: Literal["mean", "leave-one-out"] = "mean"
    scale: Literal["group", "batch", "none"] = "group"
    micro_batch: int = 64
    max_batch: int = 96
    average: float = 0.0
    base_every: int = 10
    sheet_every: int = 20
    save_every: int = 5
    device: str = "auto"
    track: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    push_to_hub: str = "none"

    def geometry(self) -> Geometry:
        return Geometry(self.queries, self.group, self.refinements, self.window, self.plan, self.loop,
                        self.denoising_steps, self.guidance, self.noise, self.image_dropout,
                        self.max_batch)  # fmt: skip

    def surrogate(self) -> Surrogate:
        return Surrogate(self.clip, None, self.kl_weight, self.per, self.max_new_tokens)

    def training(self) -> Training:
        return Training(self.steps, self.epochs, self.lr, save_every=self.save_every, average=self.average)

    def __post_init__(self) -> None:
        self.geometry(), self.surrogate(), self.training(), LoRA(self.rank, 2 * self.rank)
        if not 0 <= self.first_alone <= self.steps:
            raise ValueError(
                f"first_alone is {self.first_alone}; it must lie between 0 and steps ({self.steps})"
            )
        if self.reward == "none":
            raise ValueError("there is no reward to train on; give --reward oracle or your own module:name")


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
    names(settings)
    device = parts.device_named(settings.device)
    processes = Processes.launched(device)
    if processes.main:
        runs.begin(run, "mini", settings, resume=resume)
    processes.wait()
    objective = objective_of(settings, device, processes)
    gold = None if settings.gold == "none" else parts.reward(settings.gold)
    watch = HackingWatch(settings.group, gold, say, past=lambda: runs.lines(run), means=processes.means)

    def sheet(update: int, batch: Batch, line: Line) -> Line:
        if processes.main and (update % settings.sheet_every == 0 or update == 1):
            write_sheet(run, update, batch.shown, settings.denoising_steps, settings.group)
        return {}

    log, end = tracker(settings.track if processes.main else "none", run, settings)

    def tell(update: int, batch: Batch, line: Line) -> Line:
        log(line, update)
        if progress is not None and processes.main:
            progress(f"reward {line['reward']:.3f}", update, settings.steps)
        return {}

    network = objective.policy.network
    done = train(
        objective,
        network,
        settings.training(),
        run,
        processes=processes,
        save=network.save_pretrained,
        after=[watch, base_of(settings, objective, processes), sheet, tell],
        last_good=last_good,
        stop_at=stop_at,
    )
    if processes.main:
        network.save_pretrained(run / runs.POLICY)
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


def names(settings: Mini) -> None:
    """Refuses names that lead nowhere before anything is loaded."""
    parts.locate(settings.backbone, "backbone")
    if settings.policy == "none":
        raise ValueError("policy 'none' has nothing to train; give mini-vlm, a chat model or a run's folder")
    parts.locate(settings.policy, "policy")
    check_tracker(settings.track)
    if settings.push_to_hub != "none" and not HUB_ID.fullmatch(settings.push_to_hub):
        raise ValueError(f"push_to_hub is {settings.push_to_hub!r}; give owner/name, or none")
    parts.reward(settings.reward)
    if settings.gold != "none":
        parts.reward(settings.gold)


def objective_of(settings: Mini, device: torch.device, processes: Processes) -> PromptGRPO:
    """Backbone, policy with a LoRA, and reward, loaded and put together."""
    backbone = parts.backbone(settings.backbone, device, getattr(torch, settings.denoiser_dtype)).value
    policy = parts.chat_policy(
        parts.locate(settings.policy, "policy")[0],
        device=device,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
    )
    lora = LoRA(settings.rank, 2 * settings.rank)
    if settings.kl_weight and settings.kl_to == "reference" and hasattr(policy.network, "peft_config"):
        raise ValueError(
            f"policy {settings.policy!r} has a LoRA already: without it, it is not the policy this training "
            "begins with, so there is no reference to hold to; give --kl-to old, or --policy mini-vlm"
        )
    return PromptGRPO(
        denoiser=backbone,
        policy=with_lora(policy, lora, seed=settings.seed, base=settings.policy),
        reward=parts.reward(settings.reward),
        queries=lambda update: asked(settings, update),
        geometry=settings.geometry(),
        surrogate=settings.surrogate(),
        seed=1_000_003 * settings.seed,
        baseline=settings.baseline,
        scale=settings.scale,
        kl_to=settings.kl_to,
        refusal_cost=settings.refusal_cost,
        first_alone=settings.first_alone,
        micro_batch=settings.micro_batch,
        recompute=settings.epochs > 1,
        total=processes.total,
    )


def asked(settings: Mini, update: int) -> list[str]:
    """The queries of one update, from the training side of the split, in turn over the tasks."""
    first = update * settings.queries
    rows = range(first, first + settings.queries)
    return [
        random_query(TASKS[i % len(TASKS)], random.Random(f"{settings.seed}/grpo/{i}"), held_out=False).text
        for i in rows
    ]

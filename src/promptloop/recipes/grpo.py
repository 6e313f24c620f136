"""GRPO of a prompt policy, as `Grpo` says: what `promptloop train mini` and the recipes of `real.py` run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptloop import checkpoint
from promptloop.denoisers import memory
from promptloop.objectives.contract import Batch
from promptloop.objectives.prompts import PromptGRPO
from promptloop.parameters import fully, has_reference, saving_memory, with_lora
from promptloop.policies.mllm import Mllm
from promptloop.processes import Processes
from promptloop.recipes import loaded, parts, runs, served_rollouts
from promptloop.recipes.early import checked, foreign, launched, prompts_of
from promptloop.recipes.played import Played, trained_as
from promptloop.recipes.played import write as write_played
from promptloop.recipes.progress import Progress, silent
from promptloop.recipes.prompts import Prompts
from promptloop.recipes.rewards import own_scale, reward_named
from promptloop.recipes.settings import TOLERANCE, Grpo
from promptloop.recipes.sheet import write_sheet
from promptloop.recipes.tracking import idle, push, told, tracker
from promptloop.rewards.contract import Reward
from promptloop.rollout import Rollout, alone
from promptloop.train import After, Line, train
from promptloop.turns import DENOISER, POLICY, Turns
from promptloop.watch import HackingWatch
from promptloop.world.queries import training_texts

Say = Callable[[str], None]


def grpo(
    settings: Grpo,
    run: Path,
    *,
    recipe: str = "mini",
    resume: bool = False,
    last_good: bool = False,
    progress: Progress | None = None,
    say: Say = print,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """Trains by the settings of `recipe`, and leaves in `run` the policy, checkpoints, metrics and a card."""
    checked(settings)
    device = parts.device_named(settings.device)
    processes = launched(settings, device)
    checkpoint.seed_generators(settings.seed)
    tell_once = say if processes.main else silent
    if word := foreign(recipe, settings.backbone):
        tell_once(word)
    prompts = prompts_of(settings, tell_once)
    reward = reward_named(settings.reward, device)
    gold = None if settings.gold == "none" else own_scale(reward_named(settings.gold, device), settings.gold)
    lock: AbstractContextManager[Any] = nullcontext()
    if processes.main:
        read = prompts and prompts.sha256
        lock = runs.begin(run, recipe, settings, resume=resume, prompts=read, say=say)
    with lock:
        for word in runs.resumed(run) if resume else []:
            tell_once(word)
        processes.wait()
        objective = objective_of(settings, reward, device, processes, prompts, tell_once)
        in_force = {**asdict(settings.training()), **settings.fixed(), "kl_to": objective.kl_to}
        if processes.main:
            for word in runs.record(run, loaded.digests(settings), in_force):
                say(word)
        watch = HackingWatch(settings.group, gold, tell_once, past=lambda: runs.lines(run),
                             means=processes.means)  # fmt: skip
        training = partial(train, last_good=last_good, stop_at=stop_at)
        done, save = trained(settings, objective, run, processes, watch, progress, tell_once, training)
        if processes.main:
            runs.finish(run / runs.POLICY, save)
            runs.card(run, recipe, {**asdict(settings), **in_force}, device, runs.POLICY)
            if settings.push_to_hub != "none":
                say(f"uploaded: {push(run, run / runs.POLICY, settings.push_to_hub)}")
        processes.wait()
        return {"updates": done, "role": "policy", "settings": asdict(settings), "lines": runs.lines(run)}


def trained(
    settings: Grpo,
    objective: PromptGRPO,
    run: Path,
    processes: Processes,
    watch: After,
    progress: Progress | None,
    say: Say,
    training: Callable[..., int],
) -> tuple[int, Callable[[Path], None]]:
    """The last update, and what saves the policy into a folder."""
    log, end = tracker(settings.track if processes.main else "none", run, settings)

    def tell(update: int, batch: Batch, line: Line) -> Line:
        log(line, update)
        if why := idle(line):
            say(f"update {update}: {why}")
        if progress is not None and processes.main:
            progress(f"training: {told(line)}", update, settings.steps)
        return {}

    policy, save = objective.policy, saving(objective, trained_as(settings))
    processes = processes.dividing(policy.network) if settings.shard else processes
    hooks = [
        watch,
        base_of(settings, objective, processes),
        sheets_of(settings, run, objective, processes),
        tell,
    ]
    with served_rollouts.serving(objective), memory.told("the policy is trained", lambda: lowered(settings)):
        done = training(objective, policy.network, settings.training(), run, processes=processes, save=save,
                        after=hooks)  # fmt: skip
    end()
    return done, partial(save, weights=processes.weights())


def lowered(settings: Grpo) -> list[str]:
    """What of the settings would leave the policy's training more memory."""
    ways = [f"micro_batch (now {settings.micro_batch})", f"image_size (now {settings.image_size})"]
    if not settings.gradient_checkpointing:
        ways.append("what the backward pass needs by gradient_checkpointing (now off)")
    if settings.offload not in ("denoiser", "both"):
        ways.append(f"what lies there by offload (now {settings.offload!r}: try 'both')")
    return ways


def sheets_of(settings: Grpo, run: Path, objective: PromptGRPO, processes: Processes) -> After:
    """A hook that writes a sheet of samples now and then, and of the first update and the last."""

    def drawn(made: Rollout, rows: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        asked = [made.queries[k] for k in rows]
        places = [divmod(k, settings.group) for k in rows]  # the main process has the first groups
        with objective.turns(DENOISER):
            return alone(objective.denoiser, objective.reward, asked, objective.geometry, places, seed=seed)

    def sheet(update: int, batch: Batch, line: Line) -> Line:
        every = settings.sheet_every
        if processes.main and every and (update % every == 0 or update in (1, settings.steps)):
            base = partial(drawn, batch.shown, seed=objective.seed + update - 1)
            write_sheet(run, update, batch.shown, objective.geometry, base)
        return {}

    return sheet


def base_of(settings: Grpo, objective: PromptGRPO, processes: Processes) -> After:
    """A hook that samples the queries alone now and then: "base", and how much of the room is "headroom"."""

    def base(update: int, batch: Batch, line: Line) -> Line:
        if not settings.base_every or (update - 1) % settings.base_every:
            return {}
        first, asked = processes.share.of_rows(objective.queries(update - 1))
        with objective.turns(DENOISER):
            places = [(first + k, 0) for k in range(len(asked))]
            _, there = alone(objective.denoiser, objective.reward, asked, objective.geometry, places,
                             seed=objective.seed + update - 1)  # fmt: skip
        found = processes.means({"base": float(there.mean())})
        room = 1.0 - found["base"]  # the oracle's scores end at 1
        if settings.reward in ("oracle", "oracle-strict") and room > 0:
            found["headroom"] = (line["reward"] - found["base"]) / room
        return found

    return base


def objective_of(
    settings: Grpo,
    reward: Reward,
    device: torch.device,
    processes: Processes,
    prompts: Prompts | None = None,
    say: Say = silent,
) -> PromptGRPO:
    """Backbone and policy with a LoRA, loaded and put together with the reward and the prompts."""
    waiting = {"none": (), "both": (POLICY, DENOISER)}.get(settings.offload, (settings.offload,))
    there = torch.device("cpu") if DENOISER in waiting else device
    backbone = parts.backbone(settings.backbone, there, getattr(torch, settings.denoiser_dtype),
                              lora=settings.loras(), size=settings.size or 0,
                              embedded_guidance=settings.embedded_guidance).value  # fmt: skip
    queries = asking(settings, prompts, backbone, say)
    where, embedded = parts.locate(settings.policy, "policy")
    policy = parts.chat_model(
        where,
        device=device,
        dtype=getattr(torch, settings.policy_dtype),
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        image_size=settings.image_size,
        quantize=settings.policy_quantize,
    )
    fresh = not has_reference(policy.network)  # else what it was before training is not its base
    if settings.train_weights == "all":
        policy = fully(policy)
    else:
        base = settings.policy if embedded else where
        policy = with_lora(policy, settings.policy_lora(), seed=settings.seed, base=base)
    if settings.gradient_checkpointing:
        saving_memory(policy)
    first = first_of(settings, device)
    writers = [policy.network, *([] if first is None else [first.network])]
    return PromptGRPO(
        denoiser=backbone,
        policy=policy,
        reward=reward,
        queries=queries,
        geometry=settings.geometry(),
        surrogate=settings.surrogate(),
        first=first,
        seed=1_000_003 * settings.seed,
        baseline=settings.baseline,
        scale=settings.scale,
        kl_to=settings.kl_to if fresh and settings.train_weights == "lora" else "old",
        refusal_cost=settings.refusal_cost,
        length_cost=settings.length_cost,
        draft_words=settings.draft_words,
        first_alone=settings.first_alone,
        micro_batch=settings.micro_batch,
        recompute=settings.epochs > 1,
        tolerance=TOLERANCE[settings.policy_dtype],
        total=processes.total,
        served=served_rollouts.served_of(settings, policy),
        mismatch=settings.mismatch(),
        turns=Turns({POLICY: writers, DENOISER: backbone.modules}, waiting, device),
    )


def saving(objective: PromptGRPO, played: Played) -> Callable[..., None]:
    """Saves the trained policy into a folder, with how it is played, and in it who writes the first draft, if
    another does.
    """

    def save(folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        objective.policy.save(folder, weights)
        write_played(folder, played)
        if isinstance(objective.first, Mllm):
            objective.first.save(folder / runs.FIRST)

    return save


def first_of(settings: Grpo, device: torch.device) -> Mllm | None:
    """Who writes the first drafts, the likeliest; None: the trained policy does."""
    if settings.first == "none":
        return None
    where = parts.locate(settings.first, "policy")[0]
    return parts.chat_model(
        where, device=device, dtype=getattr(torch, settings.policy_dtype), temperature=0.0
    )


def asking(settings: Grpo, prompts: Prompts | None, denoiser: Any, say: Say) -> Callable[[int], list[str]]:
    """The queries of each update. Prompts that the backbone's text encoder does not read to their end are
    left out.
    """
    if prompts is None:
        return lambda update: asked(settings, update)
    limit = settings.prompt_tokens or denoiser.text_limit
    fitting = prompts.without(
        f"of more than {limit} tokens of the text encoder", lambda text: denoiser.count_tokens(text) <= limit
    )
    if fitting != prompts:
        say(fitting.told())
    if len(fitting.texts) < settings.queries:
        raise ValueError(
            f"{fitting.told()}; an update asks {settings.queries} queries: give more, or a smaller --queries"
        )
    return lambda update: fitting.of(update, settings.queries)


def asked(settings: Grpo, update: int) -> list[str]:
    """The queries of one update, of the embedded world."""
    first = update * settings.queries
    return training_texts(f"{settings.seed}/grpo", range(first, first + settings.queries))

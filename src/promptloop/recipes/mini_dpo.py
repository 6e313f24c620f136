"""`promptloop train mini-dpo`: Diffusion-DPO of a backbone on pairs of its own images, judged by a reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptloop import checkpoint
from promptloop.controls.guidance import CFG
from promptloop.controls.prompt import PromptLoop
from promptloop.objectives.contract import Batch
from promptloop.objectives.preference import LEVELS, DiffusionDPO, Pairs
from promptloop.parameters import LoRA, lora_on, save_lora
from promptloop.policies.contract import Policy
from promptloop.processes import Processes
from promptloop.recipes import loaded, parts, runs
from promptloop.recipes.dpo_settings import MiniDPO
from promptloop.recipes.progress import Progress, telling
from promptloop.recipes.rewards import own_scale, reward_named
from promptloop.rewards.contract import scored
from promptloop.sample import Control, sample
from promptloop.train import After, Line, train
from promptloop.world.queries import training_texts

PAIRS = "pairs.safetensors"


def mini_dpo(
    settings: MiniDPO,
    run: Path,
    *,
    recipe: str = "mini-dpo",
    resume: bool = False,
    last_good: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """Trains, and leaves in `run` the LoRA (`run/backbone`), the pairs, checkpoints, metrics and a card."""
    checkpoint.seed_generators(settings.seed)
    where, embedded = parts.locate(settings.backbone, "backbone")
    base = settings.backbone if embedded else where  # not as typed: another directory would find another one
    parts.locate(settings.policy, "policy")
    reward = own_scale(reward_named(settings.reward), settings.reward)
    gold = None if settings.gold == "none" else own_scale(reward_named(settings.gold), settings.gold)
    device = parts.device_named(settings.device)
    Processes.alone("mini-dpo")
    with runs.begin(run, recipe, settings, resume=resume, say=say):
        backbone = parts.backbone(settings.backbone, device, torch.float32).value
        training = partial(train, last_good=last_good, stop_at=stop_at)
        done = tuned(settings, run, backbone, base, reward, gold, training, progress, say)
        runs.finish(run / runs.BACKBONE, lambda folder: save_lora(backbone, folder, base=base))
        runs.card(run, recipe, {**asdict(settings), **in_force(settings)}, device, runs.BACKBONE)
        return {"updates": done, "role": "backbone", "settings": asdict(settings), "lines": runs.lines(run)}


def in_force(settings: MiniDPO) -> dict[str, Any]:
    """Every number of the training, those that are no settings too."""
    return asdict(settings.training()) | {"lora_alpha": settings.rank}


def tuned(
    settings: MiniDPO,
    run: Path,
    backbone: Any,
    base: str,
    reward: Any,
    gold: Any,
    training: Callable[..., int],
    progress: Progress | None,
    say: Callable[[str], None],
) -> int:
    """Makes the pairs, or takes those that are there, and trains a LoRA on them; the last update."""
    if getattr(backbone.network, "peft_config", None):
        raise ValueError(
            f"{settings.backbone} is tuned already; tuning starts from a backbone without a LoRA"
        )
    for word in runs.record(run, loaded.digests(settings), in_force(settings)):
        say(word)
    backbone.levels(LEVELS)  # a distilled one has too few: told before the pairs are made
    if not (run / PAIRS).exists():
        found = judged(settings, backbone, reward, progress)
        save_file(found, run / f"{PAIRS}.part")
        (run / f"{PAIRS}.part").chmod((run / runs.CONFIG).stat().st_mode)  # else the owner's alone
        (run / f"{PAIRS}.part").replace(run / PAIRS)
    held = load_file(run / PAIRS)
    prompts = training_texts(f"{settings.seed}/dpo/pairs", range(settings.queries))
    pairs = Pairs(tuple(prompts[k] for k in held["query"]), held["winner"], held["loser"])
    if alike := len(prompts) - len(pairs.prompts):
        say(f"{alike} of {len(prompts)} queries gave no pair, because their images score alike")
    lora_on(backbone, LoRA(settings.rank, settings.rank), seed=settings.seed)
    objective = DiffusionDPO(backbone, pairs, settings.dpo_beta, settings.batch, settings.pairs_per_level,
                             settings.error, settings.seed)  # fmt: skip

    checkpoint.seed_generators(settings.seed)  # here too, since pairs are made once and not on resume
    return training(
        objective,
        backbone.network,
        settings.training(),
        run,
        processes=Processes(),
        save=lambda folder, weights: save_lora(backbone, folder, base=base),
        after=[looked(settings, backbone, reward, gold), telling(progress, settings.steps, "right")],
    )


def judged(
    settings: MiniDPO, denoiser: Any, reward: Any, progress: Progress | None, at_once: int = 24
) -> dict[str, Tensor]:
    """Latents of the best and the worst image of each query whose images differ, and the query's number."""
    queries = training_texts(f"{settings.seed}/dpo/pairs", range(settings.queries))
    rows: dict[str, list[Tensor]] = {"query": [], "winner": [], "loser": []}
    policy = None
    if settings.policy != "none":
        where = parts.locate(settings.policy, "policy")[0]
        policy = parts.chat_policy(where, device=denoiser.device)
    for first in range(0, len(queries), at_once):
        some = queries[first : first + at_once]
        each = [query for query in some for _ in range(settings.group)]
        begin = 1_000_003 * settings.seed + first * settings.group
        seeds = list(range(begin, begin + len(each)))
        if policy is None:
            latents, images = drawn(settings, denoiser, each, seeds)
        else:
            plain = drawn(settings, denoiser, each[::2], seeds[::2])
            refined = drawn(settings, denoiser, each[1::2], seeds[1::2], policy)
            back = torch.cat([torch.arange(0, len(each), 2), torch.arange(1, len(each), 2)]).argsort()
            latents, images = (torch.cat(both)[back] for both in zip(plain, refined, strict=True))
        values = scored(reward, images, each).view(-1, settings.group)
        for k, row in enumerate(values):
            if row.max() > row.min():
                rows["query"].append(torch.tensor(first + k))
                rows["winner"].append(latents[k * settings.group + int(row.argmax())])
                rows["loser"].append(latents[k * settings.group + int(row.argmin())])
        if progress is not None:
            progress("making pairs", first + len(some), len(queries))
    if not rows["query"]:
        raise ValueError(
            f"{settings.reward} tells no two images of a query apart; there is no pair to learn from"
        )
    return {name: torch.stack(values).cpu().contiguous() for name, values in rows.items()}


def drawn(
    settings: MiniDPO, denoiser: Any, queries: list[str], seeds: list[int], policy: Policy | None = None
) -> tuple[Tensor, Tensor]:
    """Clean latents and images of the queries, image i from seeds[i]; alone, or refined by `policy`."""
    assert settings.window is not None and settings.guidance is not None
    refined: list[Control] = [] if policy is None else [PromptLoop(policy, window=settings.window)]
    end = sample(
        denoiser,
        queries,
        seeds=seeds,
        steps=settings.denoising_steps,
        controls=[*refined, CFG(settings.guidance)],
        max_batch=96,
    )
    assert end.images is not None
    return end.state.x, end.images


def looked(settings: MiniDPO, denoiser: Any, reward: Any, gold: Any) -> After:
    """A hook: "reward" and "gold" of the same queries from the same noise, every now and then."""
    queries = training_texts(f"{settings.seed}/dpo/look", range(settings.look_queries))

    def look(update: int, batch: Batch, line: Line) -> Line:
        every = settings.look_every
        if not every or (update % every and update not in (1, settings.steps)):
            return {}
        _, images = drawn(settings, denoiser, queries, [77_000_000 + i for i in range(len(queries))])
        found = {"reward": float(scored(reward, images, queries).mean())}
        return found if gold is None else found | {"gold": float(scored(gold, images, queries).mean())}

    return look

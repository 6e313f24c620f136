"""`promptloop train reward` and `train mini-reward`: a reward of two towers learned from choices."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptloop import checkpoint
from promptloop.objectives.bradley_terry import BradleyTerry, Choice
from promptloop.objectives.contract import Batch
from promptloop.processes import Processes
from promptloop.recipes import choices, gallery, loaded, parts, runs
from promptloop.recipes.digests import file_digest
from promptloop.recipes.images import read
from promptloop.recipes.progress import Progress
from promptloop.recipes.reward_settings import EMBEDDED, MiniReward, RewardTraining
from promptloop.recipes.rewards import own_scale, reward_named
from promptloop.rewards.towers import TwoTowers
from promptloop.train import After, Line, train

PAIRS, GALLERY = "pairs.jsonl", "gallery"
KEPT = 20_000  # small images that are kept in memory instead of read again


def reward_training(
    settings: RewardTraining,
    run: Path,
    *,
    recipe: str = "reward",
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    **training: Any,
) -> dict[str, Any]:
    """Trains, and leaves in `run` the reward (`run/reward`), checkpoints, metrics and a card."""
    alone(recipe)
    file = Path(settings.pairs).expanduser()
    found = choices.choices_in(file)
    with runs.begin(run, recipe, settings, resume=resume, prompts=file_digest(file), say=say):
        return learned(settings, run, recipe, found, progress, say, training)


def mini_reward(
    settings: MiniReward,
    run: Path,
    *,
    recipe: str = "mini-reward",
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    **training: Any,
) -> dict[str, Any]:
    """The same, from a gallery that is drawn first and judged (`run/gallery`, `run/pairs.jsonl`)."""
    alone(recipe)
    judge = own_scale(reward_named(settings.judge), settings.judge)
    who = gallery.members(settings.members) if settings.gallery == "none" else ()
    pictures = gallery.there(gallery_of(settings.gallery)) if settings.gallery != "none" else []
    with runs.begin(run, recipe, settings, resume=resume, say=say):
        if not (run / PAIRS).is_file():
            if who:
                device = parts.device_named(settings.device)
                pictures = gallery.draw(run / GALLERY, training_queries(settings), who, settings.images,
                                        seed=settings.seed, device=device, progress=progress)  # fmt: skip
            rows = choices.judged(pictures, judge, turned=settings.turned, seed=settings.seed)
            choices.written(rows, run / PAIRS)
            say(f"{len(rows)} pairs of {len(pictures)} images that {settings.judge} tells apart")
        found = choices.choices_in(run / PAIRS)
        return learned(settings, run, recipe, found, progress, say, training)


def training_queries(settings: MiniReward) -> list[str]:
    from promptloop.world.queries import training_texts

    return training_texts(f"{settings.seed}/reward", range(settings.queries))


def gallery_of(said: str) -> Path:
    """The folder of a gallery, or of the run that has drawn one."""
    folder = Path(said).expanduser()
    return folder / GALLERY if (folder / GALLERY).is_dir() else folder


def alone(recipe: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"{recipe} runs in one process so far; start it without torchrun and the like")


def learned(
    settings: RewardTraining | MiniReward,
    run: Path,
    recipe: str,
    found: Sequence[Choice],
    progress: Progress | None,
    say: Callable[[str], None],
    training: dict[str, Any],
) -> dict[str, Any]:
    """The training itself; what the run tells at its end."""
    own, held = choices.parted(found, settings.held_out, settings.seed)
    device = parts.device_named(settings.device)
    reward, kind = start(settings, device)
    layers = free(reward.network, settings.frozen)
    scale = settings.scale
    assert scale is not None
    for word in runs.record(run, digests(settings), asdict(settings.training()) | {"layers": layers}):
        say(word)
    opened = lru_cache(KEPT if reward.side <= 96 else 1)(lambda name: read(Path(name)))
    objective = BradleyTerry(reward, own, opened, scale, settings.batch, settings.pairs_per_part,
                             settings.seed)  # fmt: skip
    checkpoint.seed_generators(settings.seed)
    done = train(
        objective,
        reward.network,
        settings.training(),
        run,
        processes=Processes(),
        after=[looked(settings, replace(objective, choices=held or own)), telling(settings, progress)],
        **training,
    )
    runs.finish(run / runs.REWARD, reward.save)
    told = {**asdict(settings), "trained": kind, "pairs learned from": len(own), "pairs held out": len(held)}
    runs.card(run, recipe, told, device, runs.REWARD)
    return {"updates": done, "role": runs.REWARD, "settings": told, "lines": runs.lines(run)}


def start(settings: RewardTraining | MiniReward, device: torch.device) -> tuple[TwoTowers, str]:
    """What is trained on, in float32, and the name of its kind."""
    made: TwoTowers = reward_named(settings.reward, device)
    kind = "pickscore" if settings.reward == EMBEDDED else settings.reward.partition(":")[0]
    return made.float().to(device), kind


def digests(settings: RewardTraining | MiniReward) -> dict[str, str]:
    """What was loaded to be trained on."""
    number = loaded.of_reward(settings.reward)
    return {} if number is None else {"reward": number}


def free(network: nn.Module, frozen: float) -> int:
    """Lets everything be trained but, where `frozen` is above 0, both towers' embeddings and that share of
    their layers, from the first (ImageReward, arXiv 2304.05977, keeps 0.7); how many layers are trained.
    """
    network.requires_grad_(True)
    count = 0
    for tower in (network.vision_model, network.text_model):
        layers: Any = tower.encoder.layers  # type: ignore[union-attr]
        still = round(frozen * len(layers))
        for layer in layers[:still]:
            layer.requires_grad_(False)
        if frozen:
            tower.embeddings.requires_grad_(False)  # type: ignore[union-attr]
        count += len(layers) - still
    return count


def looked(settings: RewardTraining | MiniReward, held: BradleyTerry) -> After:
    """A hook: "accuracy", the share of the pairs held out that the reward orders as people did."""

    def look(update: int, batch: Batch, line: Line) -> Line:
        every = settings.look_every
        if not every or (update % every and update not in (1, settings.steps)):
            return {}
        return {"accuracy": float((margins(held) > 0).float().mean())}

    return look


@torch.no_grad()
def margins(held: BradleyTerry) -> Tensor:
    """[N] of all its choices, some at a time."""
    size = held.pairs_per_part
    numbers = range(len(held.choices))
    return torch.cat([held.margins(numbers[k : k + size]) for k in range(0, len(numbers), size)]).cpu()


def telling(settings: RewardTraining | MiniReward, progress: Progress | None) -> After:
    """A hook that shows how far the training is."""

    def tell(update: int, batch: Batch, line: Line) -> Line:
        if progress is not None:
            progress(f"training: right {line['right']:.2f}", update, settings.steps)
        return {}

    return tell

"""`promptloop train reward` and `train mini-reward`: a reward of two towers learned from choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptloop import checkpoint
from promptloop.interrupt import Interrupt, Stopped
from promptloop.objectives.bradley_terry import BradleyTerry, Choice
from promptloop.objectives.contract import Batch
from promptloop.processes import Processes
from promptloop.recipes import choices, gallery, loaded, parts, runs
from promptloop.recipes.digests import digest_of
from promptloop.recipes.images import read
from promptloop.recipes.progress import Progress, telling
from promptloop.recipes.reward_settings import EMBEDDED, MiniReward, RewardTraining, training_of
from promptloop.recipes.rewards import own_scale, reward_named
from promptloop.rewards.towers import TwoTowers
from promptloop.train import After, Line, train
from promptloop.world.queries import training_texts

PAIRS = "pairs.jsonl"
KEPT = 2**30  # bytes of images, as the network sees them, that are kept instead of read again


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
    Processes.alone(recipe)
    file = Path(settings.pairs).expanduser()
    found = choices.choices_in(file)
    known = digest_of([file, *(Path(name) for choice in found for name in (choice.chosen, choice.rejected))])
    reward, kind = start(settings)
    with runs.begin(run, recipe, settings, resume=resume, prompts=known, say=say):
        noted(settings, run, loaded_for(settings), reward, say)
        sides = choices.parted(found, settings.held_out, settings.seed)
        return learned(settings, run, recipe, reward, kind, sides, progress, training)


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
    Processes.alone(recipe)
    judge = own_scale(reward_named(settings.judge), settings.judge)
    who = gallery.members(settings.members) if settings.gallery == "none" else ()
    pictures = [] if who else gallery.there(gallery.folder_of(settings.gallery))
    others = {f"member {member}": member.digest() for member in who}
    if pictures:
        folder = gallery.folder_of(settings.gallery)
        others["gallery"] = digest_of([folder / gallery.LIST, *(picture.file for picture in pictures)])
    if number := loaded.of_reward(settings.judge):
        others["judge"] = number
    reward, kind = start(settings)
    with runs.begin(run, recipe, settings, resume=resume, say=say):
        noted(settings, run, loaded_for(settings) | others, reward, say)
        if not (run / PAIRS).is_file():
            if who:
                pictures = drawn(settings, run, who, progress)
            rows = choices.judged(pictures, judge, alike=settings.alike, turned=settings.turned,
                                  seed=settings.seed)  # fmt: skip
            choices.written(rows, run / PAIRS)
            say(f"{len(rows)} pairs of {len(pictures)} images that {settings.judge} tells apart")
        found = choices.choices_in(run / PAIRS)
        try:
            sides = choices.parted(found, settings.held_out, settings.seed)
        except ValueError as error:
            kept = f"; the images are kept: --gallery {run} with another --out" if who else ""
            raise ValueError(f"{error}{kept}") from None
        return learned(settings, run, recipe, reward, kind, sides, progress, training)


def drawn(
    settings: MiniReward, run: Path, who: Sequence[gallery.Member], progress: Progress | None
) -> list[gallery.Picture]:
    """The run's own gallery; a signal says that the run can be gone on from."""
    queries = training_texts(f"{settings.seed}/reward", range(settings.queries))
    device = parts.device_named(settings.device)
    try:
        with Interrupt():
            return gallery.draw(run / gallery.FOLDER, queries, who, settings.images, seed=settings.seed,
                                device=device, progress=progress)  # fmt: skip
    except Stopped as stopped:
        said = f"stopped by {stopped.name} while images were drawn, which are kept: go on by --resume"
        raise Stopped(stopped.number, said) from None


def start(settings: RewardTraining | MiniReward) -> tuple[TwoTowers, str]:
    """What is trained on, in float32, and the name of its kind."""
    device = parts.device_named(settings.device)
    made: TwoTowers = reward_named(settings.reward, device)
    kind = "pickscore" if settings.reward == EMBEDDED else settings.reward.partition(":")[0]
    return made.float().to(device), kind


def loaded_for(settings: RewardTraining | MiniReward) -> dict[str, str]:
    """What was loaded to be trained on."""
    number = loaded.of_reward(settings.reward)
    return {} if number is None else {"reward": number}


def noted(
    settings: RewardTraining | MiniReward,
    run: Path,
    known: dict[str, str],
    reward: TwoTowers,
    say: Callable[[str], None],
) -> None:
    """Parts what is trained from what is not, and holds the run to what it was begun with."""
    layers = free(reward.network, settings.frozen)
    for word in runs.record(run, known, asdict(training_of(settings)) | {"layers": layers}):
        say(word)
    before = earlier(settings.reward)
    if before and (before[0] != settings.seed or before[1] < settings.held_out):
        say(f"{settings.reward} was trained with seed {before[0]} and held_out {before[1]}, this run has "
            f"{settings.seed} and {settings.held_out}: prompts held out here may be among those that it has "
            "learned from")  # fmt: skip


def earlier(said: str) -> tuple[int, float] | None:
    """(seed, held_out), which parted the prompts of the run that has trained the reward; None for others."""
    folder = Path(said.partition(":")[2]).expanduser()
    for run in (folder, folder.parent):  # RUN, or RUN/reward
        if ":" in said and parts.trained_role(run) == runs.REWARD:
            found = runs.config_of(run)["settings"]
            return (found["seed"], found["held_out"]) if "held_out" in found else None
    return None


def learned(
    settings: RewardTraining | MiniReward,
    run: Path,
    recipe: str,
    reward: TwoTowers,
    kind: str,
    sides: tuple[list[Choice], list[Choice]],
    progress: Progress | None,
    training: dict[str, Any],
) -> dict[str, Any]:
    """The training itself; what the run tells at its end."""
    own, held = sides
    scale = settings.scale
    assert scale is not None

    @lru_cache(max(1, KEPT // (12 * reward.side**2)))
    def seen(name: str) -> Tensor:
        return reward.pixels(read(Path(name))[None])[0].cpu()

    objective = BradleyTerry(reward, own, seen, scale, settings.batch, settings.pairs_per_part, settings.seed)
    looks = [looked(settings, replace(objective, choices=held))] if held and settings.look_every else []
    checkpoint.seed_generators(settings.seed)
    done = train(
        objective,
        reward.network,
        training_of(settings),
        run,
        processes=Processes(),
        after=[*looks, telling(progress, settings.steps, "right")],
        **training,
    )
    runs.finish(run / runs.REWARD, reward.save)
    told = {**asdict(settings), "trained": kind, "pairs learned from": len(own), "pairs held out": len(held)}
    runs.card(run, recipe, told, parts.device_named(settings.device), runs.REWARD)
    return {"updates": done, "role": runs.REWARD, "settings": told, "lines": runs.lines(run)}


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
        if update % settings.look_every and update not in (1, settings.steps):
            return {}
        return {"accuracy": float((margins(held) > 0).float().mean())}

    return look


@torch.no_grad()
def margins(held: BradleyTerry) -> Tensor:
    """[N] of all its choices, some at a time."""
    size = held.pairs_per_part
    numbers = range(len(held.choices))
    return torch.cat([held.margins(numbers[k : k + size]) for k in range(0, len(numbers), size)]).cpu()

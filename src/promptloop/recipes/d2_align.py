"""`promptloop train d2-align`: one direction in a CLIP reward's text space, from the generator's images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptloop import checkpoint
from promptloop.objectives.direction import Direction
from promptloop.processes import Processes
from promptloop.recipes import gallery, loaded, parts, runs
from promptloop.recipes.digests import digest_of
from promptloop.recipes.images import read
from promptloop.recipes.progress import Progress, telling
from promptloop.recipes.reward_settings import D2Align
from promptloop.recipes.rewards import finished, reward_named
from promptloop.rewards.directional import Directional
from promptloop.train import train


def d2_align(
    settings: D2Align,
    run: Path,
    *,
    recipe: str = "d2-align",
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    **training: Any,
) -> dict[str, Any]:
    """Trains, and leaves in `run` the direction (`run/reward`), checkpoints, metrics and a card."""
    Processes.alone(recipe)
    file = list_of(settings.images)
    pictures = gallery.pictures_in(file)
    known = digest_of([file, *(picture.file for picture in pictures)])
    device = parts.device_named(settings.device)
    with runs.begin(run, recipe, settings, resume=resume, prompts=known, say=say):
        reward = reward_named(settings.reward, device)
        for word in runs.record(run, digests(settings), asdict(settings.training())):
            say(word)
        corrected = Directional(reward, omega=settings.omega)
        reward.requires_grad_(False)
        corrected.direction.requires_grad_(True)
        seen, said = points(corrected, pictures, progress)
        checkpoint.seed_generators(settings.seed)
        done = train(
            Direction(corrected, seen, said, settings.batch, settings.seed),
            corrected,
            settings.training(),
            run,
            processes=Processes(),
            after=[telling(progress, settings.steps, "length")],
            **training,
        )
        runs.finish(run / runs.REWARD, lambda folder: corrected.save(folder, whole(settings.reward)))
        told = {**asdict(settings), "trained": "d2-align"}
        runs.card(run, recipe, told, device, runs.REWARD)
        return {"updates": done, "role": runs.REWARD, "settings": told, "lines": runs.lines(run)}


def list_of(said: str) -> Path:
    """The list of images that is meant: the file, or that of a gallery or of a run that has drawn one."""
    path = Path(said).expanduser()
    if path.is_dir():
        path = gallery.folder_of(said) / gallery.LIST
    if path.suffix not in (".jsonl", ".csv") or not path.is_file():
        raise ValueError(f"images {said!r}: give a .jsonl or .csv of image and prompt, or a run's gallery")
    return path


def whole(said: str) -> str:
    """The reward's name with its folder's whole path: it is read from another folder later."""
    kind, _, where = said.partition(":")
    path = Path(finished(where)).expanduser()
    return f"{kind}:{path.resolve()}" if where and path.exists() else said


def digests(settings: D2Align) -> dict[str, str]:
    """What was loaded to be corrected."""
    number = loaded.of_reward(settings.reward)
    return {} if number is None else {"reward": number}


@torch.no_grad()
def points(
    corrected: Directional, pictures: list[gallery.Picture], progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Pictures and texts [N, D] as the two towers have them."""
    reward, size, seen, said = corrected.reward, corrected.reward.batch, [], []
    for k in range(0, len(pictures), size):
        some = pictures[k : k + size]
        seen.append(reward.seen(torch.cat([reward.pixels(read(picture.file)[None]) for picture in some])))
        said.append(reward.said(reward.ids([picture.prompt for picture in some])))
        if progress is not None:
            progress("looking at the images", k + len(some), len(pictures))
    return torch.cat(seen), torch.cat(said)

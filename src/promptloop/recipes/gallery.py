"""A gallery: what several models draw for the same queries, as files, for a reward to be learned from.

IterComp (arXiv 2410.07171) collects one of six models' images for 3,500 prompts, and once a model is tuned
adds that one's and goes round again. Here a member is a backbone, or a backbone whose prompts a policy
writes, by the names that `generate` takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from promptloop.names import is_server
from promptloop.recipes import lists, parts
from promptloop.recipes.progress import Progress
from promptloop.recipes.usual import Usual, usual

FOLDER = "gallery"  # of the run that has drawn one
LIST = "images.jsonl"  # rows of image, prompt, member, seed
AT_ONCE = 24  # queries that are drawn for together


@final
@dataclass(frozen=True)
class Member:
    """Who draws: a backbone, and who writes its prompts ("none": nobody, the query is the prompt)."""

    backbone: str
    policy: str = "none"

    @staticmethod
    def parse(said: str) -> Member:
        """From "BACKBONE" or "BACKBONE+POLICY"; ValueError where nothing of that name is there."""
        backbone, plus, policy = (part.strip() for part in said.partition("+"))
        if not backbone or (plus and not policy):
            raise ValueError(f"{said!r} draws nothing; give BACKBONE or BACKBONE+POLICY")
        made = Member(backbone, policy or "none")
        parts.locate(made.backbone, "backbone")
        if made.policy != "none":
            parts.locate(made.policy, "policy")
        return made

    def digest(self) -> str:
        """One number for what draws."""
        roles = {"backbone": self.backbone, "policy": self.policy}
        return " ".join(
            parts.digest(parts.lora_here(parts.locate(name, role)[0]), role)
            for role, name in roles.items()
            if name != "none" and not parts.DOTTED.fullmatch(name) and not is_server(name)
        )

    def __str__(self) -> str:
        return self.backbone if self.policy == "none" else f"{self.backbone}+{self.policy}"


@final
@dataclass(frozen=True)
class Picture:
    """One image and what was asked for."""

    file: Path
    prompt: str


def members(said: str) -> tuple[Member, ...]:
    """Of several with commas between; ValueError for none, or one twice."""
    found = tuple(map(Member.parse, said.split(",")))
    if len(set(found)) < len(found):
        raise ValueError(f"members {said!r} has one twice; give more images of it by --images")
    return found


def folder_of(said: str) -> Path:
    """The folder of a gallery, or of the run that has drawn one."""
    folder = Path(said).expanduser()
    return folder / FOLDER if (folder / FOLDER).is_dir() else folder


def there(folder: Path) -> list[Picture]:
    """The gallery that the folder holds; ValueError where it holds none, or one with a file missing."""
    if not (folder / LIST).is_file():
        raise ValueError(f"{folder} holds no gallery ({LIST} is missing)")
    return pictures_in(folder / LIST)


def pictures_in(file: Path) -> list[Picture]:
    """The images of a .jsonl or .csv of image and prompt, beside it; ValueError naming what is missing."""
    found = []
    for row in lists.rows(file, "image", "prompt"):
        image = lists.file_at(file.parent / row["image"].strip(), file)
        found.append(Picture(image, row["prompt"].strip()))
    return found


def draw(
    folder: Path,
    queries: Sequence[str],
    who: Sequence[Member],
    each: int,
    *,
    seed: int,
    device: Any,
    progress: Progress | None = None,
) -> list[Picture]:
    """Draws `each` images of every member for every query into `folder`, going on where it was stopped."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows, done, whole = [], 0, len(queries) * len(who) * each
    for m, member in enumerate(who):
        drawing = None
        for first in range(0, len(queries), AT_ONCE):
            some = [query for query in queries[first : first + AT_ONCE] for _ in range(each)]
            begin = (m * len(queries) + first) * each
            names = [f"{begin + k:06d}.png" for k in range(len(some))]
            seeds = [1_000_003 * seed + begin + k for k in range(len(some))]
            if not all((folder / name).is_file() for name in names):
                drawing = drawing or Drawing.of(member, device)
                for name, image in zip(names, drawing.images(some, seeds), strict=True):
                    part = folder / f".{name}.part"
                    Image.fromarray(image).save(part, "png")
                    part.replace(folder / name)
            rows += [
                {"image": name, "prompt": query, "member": str(member), "seed": own}
                for name, query, own in zip(names, some, seeds, strict=True)
            ]
            done += len(some)
            if progress is not None:
                progress(f"drawing: {member}", done, whole)
    part = folder / f".{LIST}.part"
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    part.replace(folder / LIST)
    return there(folder)


@final
@dataclass(frozen=True, eq=False)
class Drawing:
    """A loaded member and what it is sampled with."""

    denoiser: Any
    policy: Any
    its: Usual

    @staticmethod
    def of(member: Member, device: Any) -> Drawing:
        import torch

        denoiser = parts.backbone(member.backbone, device, torch.float32).value
        policy = None if member.policy == "none" else parts.load_policy(member.policy, device=device)
        return Drawing(denoiser, policy, usual(member.backbone))

    def images(self, queries: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        """One [H, W, 3] of bytes for each query, image i from seeds[i]."""
        import numpy as np

        from promptloop.controls.guidance import CFG
        from promptloop.controls.prompt import PromptLoop
        from promptloop.rewards.rows import bitmaps
        from promptloop.sample import Control, sample

        loop: list[Control] = [] if self.policy is None else [PromptLoop(self.policy, window=self.its.window)]
        end = sample(self.denoiser, list(queries), seeds=list(seeds), steps=self.its.training_steps,
                     controls=[*loop, CFG(self.its.guidance)], max_batch=48)  # fmt: skip
        assert end.images is not None
        return [np.asarray(image) for image in bitmaps(end.images)]

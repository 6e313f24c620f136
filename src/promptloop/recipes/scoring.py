"""`promptloop score`: images from disk, what was asked of each, and what rewards say of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from promptloop.names import nearest
from promptloop.recipes import lists
from promptloop.recipes.images import read
from promptloop.recipes.lists import file_at, text_of
from promptloop.recipes.rewards import check

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LISTS = (".txt", ".csv", ".jsonl")
SHOWN = 48  # characters of a prompt in the table


@final
@dataclass(frozen=True)
class Asked:
    """An image's file and what was asked for."""

    image: Path
    prompt: str


@final
@dataclass(frozen=True)
class Row:
    """What the rewards say of an image; `terms`: the raw values of a sum's terms and gates, by reward."""

    image: str
    prompt: str
    rewards: dict[str, float]
    terms: dict[str, dict[str, float]]


def score(
    images: Sequence[Path],
    rewards: Sequence[str],
    *,
    prompts: Sequence[str] = (),
    listed: Path | None = None,
    device: str = "cpu",
    batch: int = 16,
) -> list[Row]:
    """A row for each image, in the order given (a folder's by name, a list's as it stands).

    `prompts` has one for all or one each; `listed` is a file of them instead. `batch` images of one size are
    scored together. ValueError for what cannot be read or does not fit together, naming it.
    """
    if not rewards:
        raise ValueError("which reward? give --reward NAME; `promptloop rewards` lists them")
    if len(set(rewards)) < len(rewards):
        raise ValueError("a reward is named twice")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    for name in rewards:
        check(name)
    rows = paired(images, prompts, listed)

    from promptloop.recipes.devices import device_named
    from promptloop.recipes.rewards import reward_named

    where = device_named(device)
    made = {name: reward_named(name, where) for name in rewards}
    found = {name: values_of(reward, rows, where, batch) for name, reward in made.items()}
    return [
        Row(
            str(row.image),
            row.prompt,
            {name: float(total[k]) for name, (total, _) in found.items()},
            {name: {t: float(v[k]) for t, v in terms.items()} for name, (_, terms) in found.items() if terms},
        )
        for k, row in enumerate(rows)
    ]


def values_of(
    reward: Any, rows: Sequence[Asked], device: Any, batch: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """[N] of a reward, and its terms; a sum is taken over all images, so ranks and z-scores are among all."""
    import torch

    from promptloop.rewards.composite import Weighted
    from promptloop.rewards.contract import scored
    from promptloop.rewards.failed import RewardFailed

    parts = reward.rewards if isinstance(reward, Weighted) else {"": reward}
    if any(getattr(part, "compares", False) for part in parts.values()):
        batch = len(rows)  # or a value would be of the images that happen to be read together
        sizes = {read(row.image).shape for row in rows}
        if len(sizes) > 1:
            raise ValueError(f"a reward that compares images reads all together; these have {len(sizes)} "
                             "sizes; give each size by itself")  # fmt: skip
    values: dict[str, list[Tensor]] = {name: [] for name in parts}
    start = 0
    while start < len(rows):
        pixels = [read(rows[start].image)]
        while len(pixels) < batch and start + len(pixels) < len(rows):
            after = read(rows[start + len(pixels)].image)
            if after.shape != pixels[0].shape:
                break
            pixels.append(after)
        stacked = torch.stack(pixels).to(device)
        asked = [row.prompt for row in rows[start : start + len(pixels)]]
        for name, part in parts.items():
            try:
                with torch.no_grad():
                    values[name].append(scored(part, stacked, asked))
            except RewardFailed as error:
                file = rows[start + error.index].image
                raise ValueError(f"reward {error.reward} of {file} ({error.query!r}) {error.why}") from error
        start += len(pixels)
    whole = {name: torch.cat(found) for name, found in values.items()}
    if not isinstance(reward, Weighted):
        return whole[""], {}
    return reward.total(whole, [row.prompt for row in rows]), whole


# --- images and prompts


def paired(images: Sequence[Path], prompts: Sequence[str], listed: Path | None) -> list[Asked]:
    """Every image with its prompt."""
    if bool(prompts) == (listed is not None):
        raise ValueError("what was asked for? give --prompt TEXT or --prompts FILE, and not both")
    if listed is not None and listed.suffix in (".csv", ".jsonl"):
        return from_list(images, listed)
    files = files_of(images)
    if listed is not None:
        prompts = lines(listed)
        if len(prompts) != len(files):
            raise ValueError(f"{listed} has {len(prompts)} prompts for {len(files)} images; one a line, in "
                             "the images' order (a folder's by name)")  # fmt: skip
    elif len(prompts) == 1:
        prompts = [*prompts] * len(files)
    elif len(prompts) != len(files):
        raise ValueError(f"{len(prompts)} prompts for {len(files)} images; give one for all, or one each")
    return [Asked(file, prompt) for file, prompt in zip(files, prompts, strict=True)]


def files_of(images: Sequence[Path]) -> list[Path]:
    """The files, and those of the folders, by name; of what `generate` wrote not its filmstrips."""
    if not images:
        raise ValueError("no image is named; give files or folders")
    found: list[Path] = []
    for path in images:
        if path.is_dir():
            own = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
            if (path / "trace.json").is_file():
                own = [file for file in own if not file.stem.endswith("-filmstrip")]
            if not own:
                raise ValueError(f"the folder {path} has no image ({', '.join(IMAGES)})")
            found += own
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"there is no image {path}")
    return found


def lines(file: Path) -> list[str]:
    """The lines of a .txt; empty ones at the end are none."""
    if file.suffix != ".txt":
        raise ValueError(f"{file}: {nearest(file.suffix, LISTS, 'prompts are read from')}")
    found = [line.strip() for line in text_of(file).rstrip().splitlines()]
    if "" in found:
        raise ValueError(f"line {found.index('') + 1} of {file} is empty; every image needs a prompt")
    return found


def from_list(images: Sequence[Path], file: Path) -> list[Asked]:
    """The rows of a .csv or .jsonl with image and prompt; where images are given, those of them, by name."""
    found = [(row["image"].strip(), row["prompt"].strip()) for row in lists.rows(file, "image", "prompt")]
    if not images:
        return [Asked(file_at(file.parent / name, file), prompt) for name, prompt in found]
    given = files_of(images)
    by_name = {path.name: path for path in given}
    if len(by_name) < len(given):
        raise ValueError(f"two of the images have one name, and {file} tells them by it; leave IMAGE away")
    asked = [(Path(name).name, prompt) for name, prompt in found]
    for name, _ in asked:
        if name not in by_name:
            raise ValueError(
                f"{file} names {name!r}, which is not among the images; {nearest(name, by_name)}"
            )
    told = {name for name, _ in asked}
    if left := [name for name in by_name if name not in told]:
        raise ValueError(f"{file} has no prompt for {left[0]} ({len(left)} of {len(given)} images have none)")
    return [Asked(by_name[name], prompt) for name, prompt in asked]


# --- what is shown


def table(rows: Sequence[Row]) -> str:
    """One line an image, a column for each reward and each term of a sum, and the means."""
    heads = [*rows[0].rewards]
    for name, terms in rows[0].terms.items():
        at = heads.index(name) + 1
        heads[at:at] = [f"{name}\0{term}" for term in terms]

    def value(row: Row, head: str) -> float:
        name, _, term = head.partition("\0")
        return row.terms[name][term] if term else row.rewards[name]

    prompts = [row.prompt if len(row.prompt) <= SHOWN else row.prompt[: SHOWN - 1] + "…" for row in rows]
    lines = [[row.image, prompt, *(f"{value(row, h):.4f}" for h in heads)]
             for row, prompt in zip(rows, prompts, strict=True)]  # fmt: skip
    if len(rows) > 1:
        means = [sum(value(row, h) for row in rows) / len(rows) for h in heads]
        lines.append(["mean", "", *(f"{mean:.4f}" for mean in means)])
    lines.insert(0, ["image", "prompt", *("  " + h.partition("\0")[2] if "\0" in h else h for h in heads)])
    wide = [max(len(line[k]) for line in lines) for k in range(len(heads) + 2)]
    spaced = [[c.ljust(w) for c, w in zip(line[:2], wide[:2], strict=True)] for line in lines]
    numbers = [[c.rjust(w) for c, w in zip(line[2:], wide[2:], strict=True)] for line in lines]
    return "\n".join("  ".join(left + right) for left, right in zip(spaced, numbers, strict=True))


def as_json(rows: Sequence[Row]) -> str:
    """A list of objects: image, prompt, rewards, and terms where a reward is a sum."""
    told = [{k: v for k, v in asdict(row).items() if k != "terms" or v} for row in rows]
    return json.dumps(told, indent=1, ensure_ascii=False)

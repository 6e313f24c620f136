"""A run again from its trace, compared pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from promptloop.recipes import trace as traces
from promptloop.recipes.folder import check
from promptloop.recipes.generate import Generated, Progress, load, run, silent, written
from promptloop.recipes.job import Job
from promptloop.recipes.parts import Part
from promptloop.timing import Stopwatch


@final
@dataclass(frozen=True, eq=False)
class Replayed:
    """`different` names the images whose pixels differ, in order (empty: all the same).

    `changed` says what of the environment is not what it was, as name -> (then, now).
    """

    made: Generated
    different: tuple[str, ...]
    changed: dict[str, tuple[Any, Any]]

    @property
    def same(self) -> bool:
        return not self.different


def replay(
    path: str | Path,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Replayed:
    """Runs trace.json again, with its number of threads, and compares every image's pixels with the trace's
    hashes (the PNG files beside it are not read).

    ValueError where the trace cannot be replayed: made from Python objects, or with other weights than found.
    """
    then = traces.read(path)
    try:
        return replayed(then, out=out, overwrite=overwrite, tell=progress or silent)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not a whole trace: {type(error).__name__} at {error}") from error


def replayed(then: dict[str, Any], *, out: str | Path | None, overwrite: bool, tell: Progress) -> Replayed:
    """The run of the trace `then`, compared with it."""
    job = Job.from_dict(then["job"])
    for role in ("backbone", "policy"):
        if getattr(job, role).startswith("<"):
            raise ValueError(
                f"the {role} of this trace was a Python object {getattr(job, role)}; name one instead"
            )
    folder = None if out is None else check(Path(out), overwrite)
    watch, threads = Stopwatch(), torch.get_num_threads()
    torch.set_num_threads(then["environment"]["threads"])
    try:
        with watch("load"):
            backbone, policy = load(job, job.backbone, job.policy, tell)
        check_weights("backbone", backbone, then["backbone"])
        check_weights("policy", policy, then["policy"])
        made = run(job, backbone, policy, watch, tell)
    finally:
        torch.set_num_threads(threads)
    if folder is not None:
        made = written(made, folder, watch, tell)
    before, now = then["environment"], made.trace["environment"]
    changed = {key: (value, now.get(key)) for key, value in before.items() if now.get(key) != value}
    return Replayed(made, differing(then, made.trace), changed)


def differing(then: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """File names of the images whose pixels differ, in order."""
    pairs = [
        (before[side], after[side])
        for before, after in zip(then["samples"], now["samples"], strict=True)
        for side in ("image", "base")
        if before[side] is not None
    ]
    return tuple(before["file"] for before, after in pairs if before["sha256"] != after["sha256"])


def check_weights(role: str, found: Part | None, wanted: dict[str, Any] | None) -> None:
    """ValueError where the weights are not those of the trace."""
    if found is not None and wanted is not None and found.sha256 != wanted["sha256"]:
        raise ValueError(
            f"the {role} {found.name!r} is not the one of the trace: its weights have sha256 "
            f"{str(found.sha256)[:12]}, the trace's {str(wanted['sha256'])[:12]}"
        )

"""A run again from its trace, compared pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from promptloop.names import is_server
from promptloop.policies.contract import Policy
from promptloop.recipes import trace as traces
from promptloop.recipes.folder import check
from promptloop.recipes.generate import Generated, load, run, written
from promptloop.recipes.job import Job
from promptloop.recipes.parts import Part
from promptloop.recipes.progress import Progress, silent
from promptloop.recipes.retold import Retold
from promptloop.timing import Stopwatch

ROLES = ("backbone", "policy")


@final
@dataclass(frozen=True, eq=False)
class Replayed:
    """`different` names the images whose pixels differ, in order (empty: all the same); `retold` those of
    which the trace tells other drafts or another score.

    `changed` says what of the environment is not what it was, as name -> (then, now). `served`: the policy
    was a server, which was not asked again (nobody can promise its answers); the drafts are the trace's.
    """

    made: Generated
    different: tuple[str, ...]
    retold: tuple[str, ...]
    changed: dict[str, tuple[Any, Any]]
    served: bool = False

    @property
    def same(self) -> bool:
        return not self.different and not self.retold


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
        job, digests, environment = Job.from_dict(then["job"]), digests_of(then), dict(then["environment"])
        threads, weights = int(environment["threads"]), {role: then[role] for role in ROLES}
        check_samples(then, job)
        served = is_server(job.policy)
        policy: str | Policy = Retold(then) if served else job.policy
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not a whole trace: {type(error).__name__} at {error}") from error
    for role in ROLES:
        if getattr(job, role).startswith("<"):
            raise ValueError(
                f"the {role} of this trace was a Python object {getattr(job, role)}; name one instead"
            )
    folder = None if out is None else check(Path(out), overwrite)
    if folder is not None and folder.resolve() == traces.file_of(path).parent.resolve():
        raise ValueError(f"{folder} holds the trace itself, which this would overwrite; give another --out")
    watch, tell, before = Stopwatch(), progress or silent, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with watch("load"):
            loaded = load(job, job.backbone, policy, tell)
        for role, found in zip(ROLES, loaded, strict=True):
            check_weights(role, found, weights[role])
        made = run(job, *loaded, watch, tell)
    finally:
        torch.set_num_threads(before)
    if folder is not None:
        made = written(made, folder, watch, tell)
    now = digests_of(made.trace)
    if now.keys() != digests.keys():
        raise ValueError(
            f"{path} lists {len(digests)} images, and its job makes {len(now)}: it was changed by hand"
        )
    different = tuple(file for file, digest in digests.items() if now[file] != digest)
    retold = tuple(
        sample["image"]["file"]
        for sample, again in zip(then["samples"], made.trace["samples"], strict=True)
        if told(sample) != told(again)
    )
    there = made.trace["environment"]
    changed = {key: (value, there.get(key)) for key, value in environment.items() if there.get(key) != value}
    return Replayed(made, different, retold, changed, served)


def check_samples(trace: dict[str, Any], job: Job) -> None:
    """ValueError where the samples of the trace are not those of its job."""
    listed = [(sample["query"], sample["seed"]) for sample in trace["samples"]]
    if listed != job.samples:
        raise ValueError(
            f"the trace lists {len(listed)} samples, which are not the {len(job.samples)} of its job: it was "
            "changed by hand"
        )


def told(sample: dict[str, Any]) -> list[Any]:
    """What a trace tells of a sample beside its pixels."""
    pictures = [sample[side] for side in ("image", "base") if sample[side] is not None]
    said = [[(draft["step"], draft["prompt"], draft["kept"]) for draft in p["drafts"]] for p in pictures]
    return [said, [p["score"] for p in pictures]]


def digests_of(trace: dict[str, Any]) -> dict[str, str]:
    """File name and sha256 of the pixels of every image, in order."""
    pictures = [sample[side] for sample in trace["samples"] for side in ("image", "base")]
    return {picture["file"]: picture["sha256"] for picture in pictures if picture is not None}


def check_weights(role: str, found: Part | None, wanted: dict[str, Any] | None) -> None:
    """ValueError where the weights are not those of the trace."""
    if found is not None and wanted is not None and found.sha256 != wanted["sha256"]:
        raise ValueError(
            f"the {role} {found.name!r} is not the one of the trace: its weights have sha256 "
            f"{str(found.sha256)[:12]}, the trace's {str(wanted['sha256'])[:12]}"
        )
    told = {lora["name"]: lora["sha256"] for lora in (wanted or {}).get("loras", [])}
    for lora in found.loras if found is not None else ():
        if lora["sha256"] != told.get(lora["name"]):
            raise ValueError(
                f"the LoRA {lora['name']!r} ({lora['path']}) is not the one of the trace: its sha256 is "
                f"{lora['sha256'][:12]}, the trace's {str(told.get(lora['name']))[:12]}"
            )

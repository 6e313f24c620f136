"""Checkpoints: written whole or not at all, checked when read, and without pickle.

A checkpoint is a folder `checkpoints/000020` with `tensors.safetensors`, `state.json` and the files the run
adds (its LoRA in peft's form). `manifest.json`, written last, holds every file's sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What is needed to go on: `tensors` by name, `state` as plain JSON, and the folder it lies in."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    folder: Path


def write(
    run: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    add: Callable[[Path], None] | None = None,
    keep: int = 3,
) -> Path:
    """Writes `run/checkpoints/<step>` in one move and removes all but the last `keep`. `add` adds files."""
    target = run / "checkpoints" / f"{step:06d}"
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part / "tensors.safetensors"
    )
    (part / "state.json").write_text(json.dumps(dict(state), allow_nan=False))
    if add is not None:
        add(part)
    as_others(part)
    files = sorted(file for file in part.rglob("*") if file.is_file())
    sums = {file.relative_to(part).as_posix(): digest(file) for file in files}
    for file in files:
        synced(file)
    (part / MANIFEST).write_text(json.dumps(sums, indent=1))
    synced(part / MANIFEST)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    synced(target.parent)
    for old in steps(run)[:-keep] if keep else []:
        shutil.rmtree(run / "checkpoints" / f"{old:06d}")
    return target


def as_others(folder: Path) -> None:
    """Gives every file in `folder` the mode that the umask leaves a new one: safetensors' writer gives its
    own to the owner alone.
    """
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_mode & 0o777 != mode:
            file.chmod(mode)


def steps(run: Path) -> list[int]:
    """The steps that checkpoints were written at, in order."""
    folder = run / "checkpoints"
    return sorted(int(f.name) for f in folder.iterdir() if f.name.isdigit()) if folder.is_dir() else []


def read(run: Path, *, last_good: bool = False) -> Checkpoint | None:
    """The newest checkpoint, None where there is none yet.

    ValueError naming the file where the newest is damaged; `last_good` goes back to the newest whole one.
    """
    for step in reversed(steps(run)):
        folder = run / "checkpoints" / f"{step:06d}"
        wrong = damage(folder)
        if wrong is None:
            tensors = load_file(folder / "tensors.safetensors")
            return Checkpoint(tensors, json.loads((folder / "state.json").read_text()), folder)
        if not last_good:
            raise ValueError(
                f"checkpoint {folder} is damaged: {wrong}; give --last-good to go on from the one before it"
            )
    if last_good and steps(run):
        raise ValueError(
            f"every checkpoint in {run / 'checkpoints'} is damaged; start again in another folder"
        )
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where nothing is."""
    try:
        sums = json.loads((folder / MANIFEST).read_text())
        for name, known in sums.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if digest(folder / name) != known:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def synced(path: Path) -> None:
    """Waits until `path` is on the disk, so that a power cut cannot leave a name without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- generators of every kind


def seed_generators(seed: int) -> None:
    """Seeds all of them: a user's reward that draws from one draws the same in every run of a seed."""
    torch.manual_seed(seed)  # CUDA's too
    np.random.seed(seed % 2**32)
    random.seed(seed)


def generators() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of torch's (CPU and CUDA), numpy's and Python's global generators, as tensors and as JSON."""
    tensors = {"rng.torch": torch.get_rng_state()}
    for k in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        tensors[f"rng.cuda.{k}"] = torch.cuda.get_rng_state(k)
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors["rng.numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, internal, gauss = random.getstate()
    state = {"numpy": [str(name), int(position), int(has_gauss), float(cached)],
             "python": [version, list(internal), gauss]}  # fmt: skip
    return tensors, state


def set_generators(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Puts `generators()` back."""
    torch.set_rng_state(tensors["rng.torch"])
    for k in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        if f"rng.cuda.{k}" in tensors:
            torch.cuda.set_rng_state(tensors[f"rng.cuda.{k}"], k)
    name, position, has_gauss, cached = state["numpy"]
    keys = tensors["rng.numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))

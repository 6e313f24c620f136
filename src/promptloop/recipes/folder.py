"""The output folder: images, filmstrips, trace.html and trace.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from promptloop.recipes import trace as traces
from promptloop.recipes.filmstrip import filmstrip
from promptloop.recipes.page import page
from promptloop.recipes.places import writable
from promptloop.recipes.shot import Shot
from promptloop.timing import Stopwatch

OURS = re.compile(r"(\d{2,}(-base|-filmstrip)?\.png|trace\.(json|html))")


def check(out: Path, overwrite: bool) -> Path:
    """The folder, if it can be written to (nothing is changed yet); ValueError where it holds something."""
    out = writable(out.expanduser())
    inside = sorted(out.iterdir()) if out.is_dir() else []
    if inside and not overwrite:
        raise ValueError(f"{out} is not empty; give another folder, or overwrite it with --overwrite")
    foreign = [file.name for file in inside if not OURS.fullmatch(file.name)]
    if foreign:
        raise ValueError(f"{out} holds {foreign[0]!r}, which no run of promptloop wrote; give another folder")
    return out


def save(
    shots: Sequence[Shot],
    trace: dict[str, Any],
    out: Path,
    watch: Stopwatch,
    tell: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Writes the folder; returns the trace with the time that took."""
    out.mkdir(parents=True, exist_ok=True)
    for earlier in [file for file in out.iterdir() if OURS.fullmatch(file.name)]:
        earlier.unlink()
    with watch("write"):
        for k, shot in enumerate(shots):
            tell("writing", k, len(shots))
            for name, image in shot.files().items():
                Image.fromarray(image).save(out / name)
            filmstrip(shot).save(out / f"{shot.name}-filmstrip.png")
        (out / "trace.html").write_text(page(shots, trace), encoding="utf-8")
        tell("writing", len(shots), len(shots))
    trace = {**trace, "seconds": {phase: round(seconds, 3) for phase, seconds in watch.seconds.items()}}
    traces.write(trace, out / "trace.json")
    return trace

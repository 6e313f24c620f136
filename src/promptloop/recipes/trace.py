"""trace.json: everything that a run was made from and everything that it made, as plain JSON."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from promptloop import __version__
from promptloop.recipes.shot import Picture, Shot, digest

FORMAT = "promptloop trace 1"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy", "pillow", "scipy")


def environment(device: torch.device) -> dict[str, Any]:
    """What the pixels may depend on besides the job and the weights."""
    on_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_cuda else torch.backends.cpu.get_cpu_capability()
    return {
        "promptloop": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
    }


def sample_entry(shot: Shot, unscored: str | None) -> dict[str, Any]:
    """One sample as JSON."""
    names = list(shot.files())
    return {
        "index": shot.index,
        "query": shot.query,
        "seed": shot.seed,
        "image": picture_entry(shot.picture, names[0]),
        "base": picture_entry(shot.base, names[1]) if shot.base else None,
        "filmstrip": f"{shot.name}-filmstrip.png",
        "not_scored": unscored,
    }


def picture_entry(picture: Picture, file: str) -> dict[str, Any]:
    notes = [
        {
            "step": note.step, "prompt": note.prompt, "answer": note.answer, "kept": note.kept,
            "tokens": note.tokens, "log_prob": round(note.log_prob, 4),
        }
        for note in picture.notes
    ]  # fmt: skip
    grade = picture.score and {
        "soft": picture.score.soft, "strict": picture.score.strict,
        "clauses": [{"clause": text, "score": value} for text, value in picture.score.clauses],
    }  # fmt: skip
    return {"file": file, "sha256": digest(picture.image), "score": grade, "drafts": notes}


def file_of(path: str | Path) -> Path:
    """trace.json itself, where its folder may be named."""
    file = Path(path).expanduser()
    return file / "trace.json" if file.is_dir() else file


def read(path: str | Path) -> dict[str, Any]:
    """The trace in `path` (a trace.json, or the folder it lies in); ValueError where it is not one."""
    file = file_of(path)
    if not file.is_file():
        raise ValueError(f"there is no trace at {path}; give the trace.json that promptloop generate wrote")
    try:
        trace = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    found = trace.get("format") if isinstance(trace, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} is not a trace this version reads: format {found!r}, wanted {FORMAT!r}")
    return trace


def write(trace: Mapping[str, Any], file: Path) -> None:
    """Indented JSON; lists of numbers stay on one line (no line break can be inside a JSON string)."""
    text = json.dumps(trace, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\n[-\d.,\se+]*?\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)
    file.write_text(text + "\n", encoding="utf-8")

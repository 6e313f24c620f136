"""What was loaded, as one number."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from promptloop.denoisers.loras import LoraSource
from promptloop.names import LORA_CONFIG

LOADED = {".safetensors", ".bin", ".json", ".txt", ".model", ".jinja", ".py"}


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of the files a model is loaded from."""
    lines = []
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        hidden = any(name.startswith(".") for name in inside.parts)
        if file.is_file() and file.suffix in LOADED and not hidden:
            lines.append(f"{inside.as_posix()} {file_digest(file)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """sha256 of one file; the hub's cache names large files by it already."""
    blob = file.resolve().name
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    now = file.stat()
    return _read(file, now.st_mtime_ns, now.st_size)


def digest_of(files: Iterable[Path]) -> str:
    """sha256 over the contents of several files, each counted once, in their order."""
    return hashlib.sha256(" ".join(map(file_digest, dict.fromkeys(files))).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _read(file: Path, changed: int, size: int) -> str:
    """The file's sha256; read again only after it was written."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def lora_entry(source: LoraSource, file: Path) -> dict[str, Any]:
    """A LoRA as a trace tells it; its sha256 is its file's, and its settings' where it has some."""
    digests = [file_digest(f) for f in (file, file.with_name(LORA_CONFIG)) if f.is_file()]
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return {"name": source.name, "path": source.path, "weight": source.weight, "sha256": sha256}

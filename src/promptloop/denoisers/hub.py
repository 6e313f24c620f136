"""One LoRA out of a repository on the hub, which may hold many and large files: it alone is downloaded."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled

from promptloop.names import HUB_ID, LORA_CONFIG, first_line

NAMED = re.compile(rf"(?P<repo>{HUB_ID.pattern})(?:/(?P<file>[\w./ -]+\.safetensors))?")  # owner/name[/file]


def file_of(path: str) -> Path:
    """The file that "owner/name/file.safetensors" names, or the only one in the root of "owner/name".

    What is there is asked first. ValueError where that is not one file, before anything is downloaded.
    """
    found = NAMED.fullmatch(path)
    assert found is not None
    repo, file = found["repo"], found["file"]
    try:
        there = in_repository(repo)
    except (OSError, ValueError) as error:
        why = first_line(error)
        raise ValueError(f"lora {path} is neither here nor on the hub: {why}") from error
    known = [name for name in there if name.endswith(".safetensors")]
    wanted = [file] if file else [name for name in known if "/" not in name]
    if len(wanted) != 1 or wanted[0] not in known:
        some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "") or "none"
        raise ValueError(f"lora {path} must be one .safetensors file: name it as {repo}/FILE; found: {some}")
    settings = str(PurePosixPath(wanted[0]).with_name(LORA_CONFIG))
    try:
        return Path(snapshot_download(repo, allow_patterns=[wanted[0], settings])) / wanted[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"lora {path} cannot be downloaded: {error}") from error


def in_repository(repo: str) -> list[str]:
    """The names of its files; offline those of them that were downloaded before."""
    try:
        return list_repo_files(repo)
    except OfflineModeIsEnabled:
        folder = Path(snapshot_download(repo, local_files_only=True))
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

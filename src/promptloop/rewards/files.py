"""Where a learned reward's weights lie: a folder, a file, or the hub, from which nothing comes unasked."""

from __future__ import annotations

from pathlib import Path

from promptloop.names import HUB_ID

CONFIG = "config.json"
KINDS = ("*.safetensors", "*.pt", "*.pth", "*.bin")


def weights_in(where: str | None, reward: str, hub: str, *files: str) -> tuple[Path, bool]:
    """The file with the weights, and whether the user asked for the hub by naming an id of it.

    where: a folder with one of `files` (or another .safetensors, .pt, .pth or .bin), such a file, a hub id;
    None: `hub`, from the cache alone. The first of `files` is the release's own.
    """
    file = files[0]
    if where is None:
        if not hub:
            raise ValueError(f"{reward} is on no hub: give {reward}:FOLDER with {file}")
        how = f"give {reward}:FOLDER with {file}, or {reward}:{hub}, which downloads it once"
        return first_cached(hub, files, download=False, why=how), False
    local = Path(where).expanduser()
    if local.is_file():
        return local, False
    if local.is_dir():
        found = [local / name for f in files for name in (f"{Path(f).stem}.safetensors", f)]
        found = [f for f in found if f.is_file()] or [f for kind in KINDS for f in sorted(local.glob(kind))]
        if not found:
            raise ValueError(f"{where} has no {file}, so it is not the folder of {reward}")
        return found[0], False
    if HUB_ID.fullmatch(where) and not Path(where).parent.is_dir():
        return first_cached(where, files, download=True, why=f"{where} is no folder here"), True
    raise ValueError(f"no {where!r} for the reward {reward}; give a folder with {file}, or a hub id as {hub}")


def first_cached(hub: str, files: tuple[str, ...], *, download: bool, why: str) -> Path:
    """The first of `files` that the hub's repository has; the error is of the release's own."""
    errors = []
    for file in files:
        try:
            return cached(hub, file, download=download, why=why)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def cached(hub: str, file: str, *, download: bool, why: str) -> Path:
    """`file` of the hub's repository, from the cache; from the hub itself only with `download`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(hub, file, local_files_only=not download))
    except (OSError, HfHubHTTPError) as error:
        there = "the hub's cache and the hub gave" if download else "the hub's cache has"
        raise ValueError(f"{there} no {file} of {hub}: {why}") from error


def there(*files: Path) -> list[Path]:
    """Those that are files."""
    return [file for file in files if file.is_file()]

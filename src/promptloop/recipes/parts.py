"""From a name to a loaded backbone or policy, with the sha256 of what was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from safetensors import SafetensorError

from promptloop.denoisers import load as load_denoiser
from promptloop.denoisers.denoiser import Denoiser
from promptloop.denoisers.loras import LoraSource, files
from promptloop.json_file import read_object
from promptloop.names import DOTTED, HUB_ID, LORA_CONFIG, first_line, imported, is_server, nearest, one_of
from promptloop.policies.contract import Policy
from promptloop.policies.endpoint import Endpoint
from promptloop.policies.first import First
from promptloop.recipes import runs
from promptloop.recipes.devices import device_named as device_named
from promptloop.recipes.digests import folder_digest, lora_entry
from promptloop.world import BACKBONES, weights

if TYPE_CHECKING:
    from promptloop.policies.mllm import Mllm

NAMES = {"backbone": BACKBONES, "policy": ("mini-policy", "mini-vlm", "none")}


@final
@dataclass(frozen=True, eq=False)
class Part:
    """A loaded backbone or policy: its name as given, its folder (None: Python made it), its sha256."""

    name: str
    value: Any
    folder: Path | None = None
    sha256: str | None = None
    embedded: bool = False
    loras: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        kind = type(self.value).__name__
        told = {"name": self.name, "class": kind, "sha256": self.sha256, "embedded": self.embedded}
        return told | ({"loras": list(self.loras)} if self.loras else {})


def backbone(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    lora: Sequence[str] = (),
    size: int = 0,
    embedded_guidance: float | None = None,
    **memory: Any,
) -> Part:
    """The denoiser `name` stands for, images of `size` (0: its own); ValueError saying what was tried.

    `lora`: more LoRAs, as [NAME=]PATH[:WEIGHT]. `embedded_guidance`: as in `load`. `memory`: `load`'s
    offload, tiling and slicing.
    """
    for setting, given in (("size", size or None), ("embedded_guidance", embedded_guidance)):
        if DOTTED.fullmatch(name) and given is not None:
            raise ValueError(f"{setting} is {given}, but backbone {name!r} is made by Python; set it there")
    if DOTTED.fullmatch(name):
        if lora or any(value not in (False, "none") for value in memory.values()):
            raise ValueError(f"backbone {name!r} is made by your own code; load its LoRAs there")
        return Part(name, made_by(name, Denoiser, "backbone"))
    where, embedded = locate(name, "backbone")
    base, more = lora_base(Path(where)), [LoraSource.parse(text) for text in lora]
    added = files(more)  # before anything heavy is loaded
    settings: dict[str, Any] = {"dtype": dtype, "device": device, "size": size or None,
                                "embedded_guidance": embedded_guidance, **memory}  # fmt: skip
    if base is None:
        value = load_denoiser(where, lora=more, **settings)
    else:
        below, embedded = locate(base, "backbone")
        value = load_denoiser(below, lora=[LoraSource(where, 1.0, "tuned"), *more], **settings)
    found = part(name, "backbone", value, where, embedded)
    return replace(found, loras=tuple(lora_entry(source, file) for source, file in added.values()))


def policy(name: str, device: torch.device, dtype: torch.dtype, temperature: float) -> Part:
    """The policy `name` stands for; ValueError saying what was tried."""
    loaded = load_policy(name, temperature=temperature, device=device, dtype=dtype)
    if DOTTED.fullmatch(name) or is_server(name):
        return Part(name, loaded)
    return part(name, "policy", loaded, *locate(name, "policy"))


def load_policy(name: str | Path, *, temperature: float = 0.0, **settings: Any) -> Policy:
    """The policy that `--policy NAME` stands for: an embedded name, a run, a folder, a hub id, "module:name",
    or the model of a server, "http://HOST:PORT/v1#MODEL".

    Drafts are the likeliest unless a `temperature` is given. `settings` are `Mllm.load`'s (device, dtype,
    max_new_tokens, image_size) or `Endpoint`'s. ValueError naming the nearest name or setting, or saying what
    was tried.
    """
    name = str(name)
    if DOTTED.fullmatch(name):
        made: Policy = made_by(name, Policy, "policy")
        return made
    if name == "none":
        raise ValueError("policy 'none' is nobody; sample without PromptLoop, or give mini-policy")
    return chat_policy(locate(name, "policy")[0], temperature=temperature, **settings)


def chat_policy(where: str, **settings: Any) -> Policy:
    """The chat model at `where` (folder, hub id, server), and who writes the first draft, if another does."""
    if is_server(where):  # device and precision are the server's affair
        told = {name: value for name, value in settings.items() if name not in ("device", "dtype")}
        for name in told:
            one_of(name, [f.name for f in fields(Endpoint) if f.name not in ("url", "served")],
                   "setting of a server")  # fmt: skip
        return Endpoint.named(where, **told)
    later, first = chat_model(where, **settings), Path(lora_here(where)) / runs.FIRST
    return First(chat_model(str(first), **settings), later) if first.is_dir() else later


def chat_model(where: str, **settings: Any) -> Mllm:
    """The chat model at `where` alone; a LoRA's folder brings the weights it belongs to."""
    if is_server(where):
        raise ValueError(f"policy {where} is a server, whose weights are not here; give a folder or a hub id")
    from promptloop.policies.mllm import Mllm

    for name in settings:
        one_of(name, [n for n in signature(Mllm.load).parameters if n not in ("path_or_id", "lora")],
               "setting of a policy")  # fmt: skip
    where = lora_here(where)
    base = lora_base(Path(where))
    try:
        if base is None:
            return Mllm.load(where, **settings)
        return Mllm.load(locate(base, "policy")[0], lora=where, **settings)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        why = first_line(error)[:300]
        there = "" if Path(where).is_dir() else "is no folder here, and from the hub it "
        raise ValueError(
            f"policy {where} {there}cannot be loaded as an image-text-to-text chat model: {why}"
        ) from error


def lora_here(where: str) -> str:
    """`where`; for a LoRA on the hub (what --push-to-hub uploads) its folder in the cache, downloaded."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    if not Path(where).is_dir():
        try:
            hf_hub_download(where, LORA_CONFIG)
        except (EntryNotFoundError, HfHubHTTPError):  # no LoRA, or no such repository, which loading will say
            return where
        where = snapshot_download(where, allow_patterns=["*.json", "*.safetensors"])
    return where


def lora_base(folder: Path) -> str | None:
    """The name of the weights that the LoRA in `folder` belongs to; None where there is no LoRA."""
    file = folder / LORA_CONFIG
    if not file.is_file():
        return None
    base = read_object(file).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{file} does not say which weights it belongs to (base_model_name_or_path)")
    return str(base)


def part(name: str, role: str, value: Any, where: str, embedded: bool) -> Part:
    folder = Path(where) if Path(where).is_dir() else snapshot(where)
    return Part(name, value, folder, digest(where, role), embedded)


def digest(where: str, role: str) -> str:
    """sha256 of the weights in a folder or of a hub id that was loaded; a LoRA's is its base's too."""
    folder = Path(where) if Path(where).is_dir() else snapshot(where)
    own, base = folder_digest(folder), lora_base(folder)
    if base is None:
        return own
    return hashlib.sha256(f"{own} {digest(locate(base, role)[0], role)}".encode()).hexdigest()


def locate(name: str, role: str) -> tuple[str, bool]:
    """The folder or hub id, and whether it is an embedded model; ValueError with the nearest name.

    "none", "package.module:name" and a server's address are returned as they are.
    """
    names = NAMES[role]
    if not name.strip():
        raise ValueError(f"the {role}'s name is empty; embedded: {', '.join(names)}")
    if (name == "none" and name in names) or DOTTED.fullmatch(name):
        return name, False
    if is_server(name):
        if role != "policy":
            raise ValueError(f"a server writes prompts: it can be the policy, but not the {role}")
        Endpoint.named(name)
        return name, False
    if name in names:
        return str(weights(name)), True
    if any(name in others for others in NAMES.values()):
        raise ValueError(f"{name!r} cannot be the {role}; embedded for that: {', '.join(names)}")
    folder, index = Path(name).expanduser(), "model_index.json" if role == "backbone" else "config.json"
    trained = trained_role(folder)
    if trained is not None and trained != role:
        raise ValueError(f"{name} trained a {trained}, so it cannot be the {role}")
    if trained is not None:
        if not any((folder / role / file).is_file() for file in (LORA_CONFIG, index)):
            raise ValueError(
                f"the training run {name} has not ended, so it has no {role} yet: go on with "
                f"`promptloop train RECIPE --out {name} --resume`, or give one of {name}/checkpoints"
            )
        folder = folder / role
    if (folder / LORA_CONFIG).is_file():
        return str(folder.resolve()), False
    if folder.is_dir():
        if not (folder / index).is_file():
            raise ValueError(f"{name} has no {index}, so it cannot be the {role}")
        return str(folder.resolve()), False
    if HUB_ID.fullmatch(name) and not Path(name).parent.is_dir():  # a mistyped folder is not asked for there
        return name, False
    raise ValueError(
        f"no {role} {name!r}: it is no folder, no hub id owner/name and no embedded one; "
        f"{nearest(name, names, 'embedded')}"
    )


def trained_role(folder: Path) -> str | None:
    """What the training run in `folder` trains: "policy" or "backbone"; None where there is no run."""
    file = folder / runs.CONFIG
    settings = read_object(file) if file.is_file() else {}
    return runs.TRAINS.get(str(settings.get("recipe")))


def family_of(name: str) -> str:
    """The backbone that `name` is, or is a LoRA of."""
    base = lora_base(Path(locate(name, "backbone")[0]))
    return name if base is None else family_of(base)


def made_by(name: str, kind: type, role: str) -> Any:
    """What "package.module:name" stands for: an instance of `kind`, or a callable that returns one."""
    value = imported(name, role)
    try:
        value = value() if callable(value) and not isinstance(value, kind) else value
    except TypeError as error:
        raise ValueError(f"{role} {name!r} cannot be called without arguments: {error}") from error
    if not isinstance(value, kind):
        found = type(value).__name__
        raise ValueError(f"{role} {name!r} is a {found}; it must be a {kind.__name__} or return one")
    return value


# --- what was loaded, as one number


def snapshot(hub_id: str) -> Path:
    """Where the hub's cache keeps what was just loaded."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, local_files_only=True))

"""LoRAs of a pipeline: several at once, each a separate set of weights that is switched by its name."""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from promptloop.denoisers import hub
from promptloop.denoisers.fits import whole
from promptloop.names import LORA_CONFIG, LORA_PREFIX, first_line, one_of

FAILURES = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError,
            OSError)  # fmt: skip
USUAL_FILES = {"pytorch_lora_weights", "adapter_model"}  # stems that say nothing: their folder names the LoRA


@final
@dataclass(frozen=True)
class LoraSource:
    """A LoRA to load, `weight` times as strong as trained. `path`: a folder, .safetensors file or hub id.

    `name` is what it is switched by; "" takes the folder's or file's. ValueError for an infinite weight or a
    name that is not made of letters, digits and underscores.
    """

    path: str
    weight: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            path = Path(self.path).expanduser()
            named = path.stem if path.suffix == ".safetensors" else path.name
            named = path.resolve().parent.name if named in USUAL_FILES else named
            object.__setattr__(self, "name", re.sub(r"\W+", "_", named).strip("_") or "lora")
        if not re.fullmatch(r"\w+", self.name):
            raise ValueError(f"the LoRA's name {self.name!r} must be letters, digits and underscores")
        if not math.isfinite(self.weight):
            raise ValueError(f"the weight of lora {self.path} is {self.weight}; give a finite number")

    @staticmethod
    def parse(text: str) -> LoraSource:
        """From "[NAME=]PATH[:WEIGHT]", as on the command line; a text that is a path as it is has neither."""
        if text and Path(text).expanduser().exists():
            return LoraSource(text)
        found = re.fullmatch(r"(?:(?P<name>\w+)=)?(?P<path>.+?)(?::(?P<weight>[-+.\deE]+))?", text)
        if found is None:
            raise ValueError(f"lora {text!r} is not [NAME=]PATH[:WEIGHT]")
        try:
            weight = float(found["weight"] or 1.0)
        except ValueError:
            raise ValueError(f"the weight in lora {text!r} is not a number; write PATH:0.8") from None
        return LoraSource(found["path"], weight, found["name"] or "")


Given = str | Path | LoraSource | Sequence[str | Path | LoraSource] | Mapping[str, float] | None


def sources(given: Given) -> list[LoraSource]:
    """One path, several, or a mapping from path to weight, as a list; ValueError where two have one name."""
    if isinstance(given, Mapping):
        found = [LoraSource(str(path), _weight(path, weight)) for path, weight in given.items()]
    else:
        row = [] if given is None else [given] if isinstance(given, str | Path | LoraSource) else [*given]
        found = [item if isinstance(item, LoraSource) else LoraSource(str(item)) for item in row]
    for name, count in Counter(source.name for source in found).items():
        if count > 1:
            where = ", ".join(source.path for source in found if source.name == name)
            raise ValueError(f"{count} LoRAs would be called {name!r} ({where}); give each a name of its own")
    return found


def _weight(path: Any, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f"the weight of lora {path} is {weight!r}; give a number, such as 0.8")
    return float(weight)


# --- loading


def files(given: Given) -> dict[str, tuple[LoraSource, Path]]:
    """Name -> the LoRA and its file of weights; ValueError where one is absent or not one file."""
    return {source.name: (source, file_of(source.path)) for source in sources(given)}


def file_of(path: str) -> Path:
    """The .safetensors file of the LoRA at `path`, downloaded where that is on the hub."""
    local = Path(path).expanduser()
    if not local.exists():
        if not hub.NAMED.fullmatch(path):
            raise ValueError(f"lora {path} does not exist; give a folder, a .safetensors file, a hub id "
                             "(owner/name) or a file on the hub (owner/name/file.safetensors)")  # fmt: skip
        return hub.file_of(path)
    found = [local] if local.is_file() else sorted(local.glob("*.safetensors"))
    if len(found) != 1 or found[0].suffix != ".safetensors":
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"lora {path} must be one .safetensors file (or a folder with one); found: {names}")
    return found[0]


def add(pipe: Any, found: Mapping[str, tuple[LoraSource, Path]]) -> None:
    """Loads the LoRAs into the pipeline, text encoders included, and puts them in force with their weights.

    ValueError for one that does not fit, in whole or in part: no weight of a file is left out.
    """
    for source, file in found.values():
        _add(pipe, source, file)
    if found:
        _put(_layers(_parts(pipe).values()), {name: source.weight for name, (source, _) in found.items()})


def _add(pipe: Any, source: LoraSource, file: Path) -> None:
    """One LoRA in the diffusers or the peft layout, not yet with its weight."""
    from promptloop.denoisers.latent import quiet

    kind, settings = type(pipe).__name__, file.with_name(LORA_CONFIG)
    try:
        with quiet("diffusers", "transformers", level=logging.CRITICAL), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they tell every part that a LoRA has nothing for
            if settings.is_file():
                network = pipe.components.get("unet") or pipe.components["transformer"]
                held = {key.removeprefix(LORA_PREFIX): value for key, value in load_file(file).items()}
                metadata = json.loads(settings.read_text(encoding="utf-8"))
                if hasattr(network, "load_lora_adapter"):
                    network.load_lora_adapter(held, prefix=None, metadata=metadata, adapter_name=source.name)
                else:  # PixArt's
                    _by_peft(network, held, settings.parent, source.name)
            elif not hasattr(pipe, "load_lora_weights"):
                raise ValueError("diffusers reads no LoRA for this family; give one in peft's layout, a "
                                 f"folder with {LORA_CONFIG}")  # fmt: skip
            else:
                where = {"weight_name": file.name, "use_safetensors": True}
                held = pipe.lora_state_dict(str(file.parent), **where)
                held = held[0] if isinstance(held, tuple) else held
                pipe.load_lora_weights(str(file.parent), adapter_name=source.name, **where)
    except SafetensorError as error:
        raise ValueError(f"the file {file} of lora {source.path} is damaged ({first_line(error)}); copy or "
                         "download it again") from error  # fmt: skip
    except FAILURES as error:
        why = first_line(error)
        why = "its text encoder has other sizes" if "ignore_mismatched_sizes" in why else why
        raise ValueError(f"lora {source.path} does not fit {kind}: {why}") from error
    whole(pipe, _parts(pipe), source.name, source.path, held, [*load_file(file)])
    if any(
        source.name in layer.scaling and not _unit(layer, source.name)
        for layer in _layers(_parts(pipe).values())
    ):
        raise ValueError(
            f"lora {source.path} has lora_alpha 0, so it does nothing; give the alpha it was trained with"
        )


def _by_peft(network: Any, held: Mapping[str, Any], folder: Path, name: str) -> None:
    """What `load_lora_adapter` does, for a network whose class diffusers gives no loader of LoRAs."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), network, adapter_name=name)
    set_peft_model_state_dict(network, held, adapter_name=name)


# --- switching


def weights(pipe: Any) -> dict[str, float]:
    """Name -> weight in force of every LoRA that the pipeline has; 0 where it is off."""
    return in_force([*_parts(pipe).values()])


def in_force(modules: Sequence[Any]) -> dict[str, float]:
    """Name -> weight in force of every LoRA of these modules; 0 where it is off."""
    found: dict[str, float] = {}
    for layer in _layers(modules):
        for name in layer.scaling:
            on = not layer.disable_adapters and name in layer.active_adapters
            unit = _unit(layer, name)
            found[name] = round(layer.scaling[name] / unit, 6) if on and unit else found.get(name, 0.0)
    return found


@contextmanager
def switched(modules: Sequence[Any], wanted: Mapping[str, float]) -> Iterator[None]:
    """Inside, the LoRAs of `modules` act with the `wanted` weights and all others are off: with none at all,
    every layer is bit for bit what it is without LoRAs. Afterwards all is as before, gradients' flags too.

    ValueError for a name that is not there, an infinite weight, and LoRAs that are fused into the weights.
    """
    layers = _layers(modules)
    known = {name for layer in layers for name in layer.scaling}
    for name, weight in wanted.items():
        if not known:
            raise ValueError(f"there is no LoRA {name!r}: this backbone has none; load it with lora=")
        one_of(name, sorted(known), "LoRA")
        if not math.isfinite(weight):
            raise ValueError(f"the weight of LoRA {name!r} is {weight}; give a finite number")
    if any(layer.merged for layer in layers):
        raise ValueError("a fused LoRA cannot be switched; call pipe.unfuse_lora() first")
    before = [(layer.disable_adapters, [*layer.active_adapters], {**layer.scaling}) for layer in layers]
    _put(layers, wanted)
    try:
        yield
    finally:
        for layer, (off, active, scaling) in zip(layers, before, strict=True):
            with _flags_kept(layer):
                layer.scaling.update(scaling)
                layer.set_adapter(active)
                layer.enable_adapters(not off)


def _put(layers: Sequence[Any], wanted: Mapping[str, float]) -> None:
    for layer in layers:
        on = [name for name, weight in wanted.items() if weight and name in layer.scaling]
        with _flags_kept(layer):
            for name in on:
                layer.set_scale(name, wanted[name])
            layer.set_adapter(on)
            layer.enable_adapters(bool(on))


@contextmanager
def _flags_kept(layer: Any) -> Iterator[None]:
    """peft makes what it switches on trainable, and off frozen."""
    flags = [(p, p.requires_grad) for p in layer.parameters()]
    yield
    for p, flag in flags:
        p.requires_grad_(flag)


def _unit(layer: Any, name: str) -> float:
    """The layer's scaling at weight 1."""
    rank = layer.r[name]
    return layer.lora_alpha[name] / (math.sqrt(rank) if layer.use_rslora.get(name) else rank)


def _parts(pipe: Any) -> dict[str, Any]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _layers(modules: Any) -> list[Any]:
    """The LoRA layers of some modules."""
    from peft.tuners.lora import LoraLayer

    return [layer for module in modules for layer in module.modules() if isinstance(layer, LoraLayer)]

"""What a backbone is sampled with unless the user says otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from promptloop.denoisers.denoiser import Denoiser
from promptloop.denoisers.latent import LatentDenoiser
from promptloop.recipes import parts

PAPER_WINDOW = (0.0, 1.0)  # refinements over the whole trajectory
# where the estimate is readable and the prompt still matters (docs/world.md)
GUIDED_WINDOW = (0.15, 0.55)  # of mini-unet and mini-flow
TURBO_WINDOW = (0.0, 0.75)  # of mini-turbo


@final
@dataclass(frozen=True)
class Usual:
    """Denoising steps (fewer where a policy is trained), guidance scale, and the part of the trajectory in
    which the prompt is refined.
    """

    steps: int = 20
    training_steps: int = 12
    guidance: float = 5.0
    window: tuple[float, float] = PAPER_WINDOW


CONSISTENCY = Usual(steps=8, training_steps=8, guidance=1.0)  # guidance is distilled into it
FLUX_DEV = Usual(steps=28, guidance=1.0)  # it is told its guidance: Flux.embedded_guidance, 3.5
FLUX_SCHNELL = Usual(steps=4, training_steps=4, guidance=1.0)
FLUX_GUIDED = Usual(steps=28, guidance=3.5)  # guidance taken out again, as some fine-tunes do
PIXART_SIGMA = Usual(steps=20, guidance=4.5)
QWEN_IMAGE = Usual(steps=50, guidance=4.0)
Z_IMAGE = Usual(steps=50, guidance=5.0)  # 4 as its pipeline counts
Z_IMAGE_TURBO = Usual(steps=8, training_steps=8, guidance=1.0)
TURBO_SHIFT = 3.0  # of Z-Image-Turbo's scheduler, all that tells it from the base, which shifts by 6


@final
@dataclass(frozen=True)
class Told:
    """What a backbone's folder, hub id or pipeline says of itself without its weights.

    pipeline, scheduler: their classes' names, "" where it does not say (loading will say why).
    config: part ("transformer", "scheduler") -> its settings.
    """

    pipeline: str
    scheduler: str
    config: Callable[[str], Mapping[str, Any]]


def usual(backbone: str | Denoiser) -> Usual:
    """For a backbone, or the name of one, of which a few settings are read and no weights.

    Few steps without guidance for what says that it was distilled: a LCMScheduler, FLUX.1 schnell (no
    `guidance_embeds`, no dynamic shift), Z-Image-Turbo (`TURBO_SHIFT`). FLUX.1 dev is without guidance, too:
    it is told its own. A model that does not say so (SD-Turbo, SDXL-Lightning) is given steps and guidance.
    """
    embedded = False
    if isinstance(backbone, str):
        family = parts.family_of(backbone)
        embedded, told = family in parts.NAMES["backbone"], told_by(family)
    elif isinstance(backbone, LatentDenoiser):
        pipe = backbone.pipe
        told = Told(
            type(pipe).__name__, type(pipe.scheduler).__name__, lambda part: getattr(pipe, part).config
        )
    else:
        told = Told("", type(backbone.scheduler).__name__, lambda _: {})
    its = CONSISTENCY if told.scheduler == "LCMScheduler" else of_family(told)
    if not embedded:
        return its
    return replace(its, window=TURBO_WINDOW if its is CONSISTENCY else GUIDED_WINDOW)


def of_family(told: Told) -> Usual:
    """For pipelines with their own scheduler: their defaults, or what their model cards say."""
    match told.pipeline:
        case "FluxPipeline" if told.config("transformer").get("guidance_embeds"):
            return FLUX_DEV
        case "FluxPipeline":
            return FLUX_GUIDED if told.config("scheduler").get("use_dynamic_shifting") else FLUX_SCHNELL
        case "PixArtSigmaPipeline":
            return PIXART_SIGMA
        case "QwenImagePipeline":
            return QWEN_IMAGE
        case "ZImagePipeline":
            return Z_IMAGE_TURBO if told.config("scheduler").get("shift") == TURBO_SHIFT else Z_IMAGE
        case _:
            return Usual()


def told_by(name: str) -> Told:
    """What the backbone of this name says of itself."""
    if parts.DOTTED.fullmatch(name):
        return Told("", "", lambda _: {})
    where = parts.locate(name, "backbone")[0]
    if Path(where).is_dir():
        index = settings_in(Path(where) / "model_index.json")
    else:
        from promptloop.denoisers import folders

        index = folders.index(where)
    named = index.get("scheduler")
    scheduler = str(named[-1]) if isinstance(named, list) and named else ""
    return Told(str(index.get("_class_name")), scheduler, partial(config_of, where))


def config_of(where: str, part: str) -> Mapping[str, Any]:
    """The settings of one part of the pipeline in a folder or of a hub id."""
    file = f"{part}/scheduler_config.json" if part == "scheduler" else f"{part}/config.json"
    if Path(where).is_dir():
        return settings_in(Path(where) / file)
    from huggingface_hub import hf_hub_download

    try:
        return settings_in(Path(hf_hub_download(where, file)))
    except (OSError, ValueError) as error:
        raise ValueError(f"{where} has no {file} that can be read: {error}") from error


def settings_in(file: Path) -> Mapping[str, Any]:
    """What a JSON file holds; nothing where it cannot be read, which loading will say."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def settle(settings: Any, **fields: str) -> None:
    """Fills those `fields` (name=name in Usual) of frozen settings that are None, by their backbone.

    The backbone's index is looked at only where one of them is.
    """
    lacking = {name: source for name, source in fields.items() if getattr(settings, name) is None}
    if lacking:
        its = usual(settings.backbone)
        for name, source in lacking.items():
            object.__setattr__(settings, name, getattr(its, source))

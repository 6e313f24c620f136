"""What a backbone is sampled with unless the user says otherwise."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from promptloop.denoisers.denoiser import Denoiser
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


def usual(backbone: str | Denoiser) -> Usual:
    """For a backbone, or the name of one, whose index alone is read. With an LCMScheduler it takes few steps.

    A model distilled in another way cannot be told by its scheduler (SD-Turbo's is an ordinary one): give its
    steps and guidance.
    """
    embedded = False
    if isinstance(backbone, str):
        family = parts.family_of(backbone)
        embedded, scheduler = family in parts.NAMES["backbone"], scheduler_of(family)
    else:
        scheduler = type(backbone.scheduler).__name__
    its = CONSISTENCY if scheduler == "LCMScheduler" else Usual()
    if not embedded:
        return its
    return replace(its, window=TURBO_WINDOW if its is CONSISTENCY else GUIDED_WINDOW)


def scheduler_of(name: str) -> str:
    """The scheduler's class in the pipeline's index; "" where it does not say (loading will say why)."""
    if parts.DOTTED.fullmatch(name):
        return ""
    where = parts.locate(name, "backbone")[0]
    if not Path(where).is_dir():
        from promptloop.denoisers import folders

        return str((folders.index(where).get("scheduler") or ["", ""])[-1])
    try:
        index = json.loads((Path(where) / "model_index.json").read_text(encoding="utf-8"))
        return str(index["scheduler"][1])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def settle(settings: Any, **fields: str) -> None:
    """Fills those `fields` (name=name in Usual) of frozen settings that are None, by their backbone.

    The backbone's index is looked at only where one of them is.
    """
    lacking = {name: source for name, source in fields.items() if getattr(settings, name) is None}
    if lacking:
        its = usual(settings.backbone)
        for name, source in lacking.items():
            object.__setattr__(settings, name, getattr(its, source))

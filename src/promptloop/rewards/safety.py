"""Whether an image is safe, as a penalty: 0 or below; a gate is made of it by `Weighted(gates=)`.

Both detectors err in both ways, and both can be optimised against: a safety reward is never the only reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from promptloop.names import first_line
from promptloop.rewards.rows import bitmaps, one_by_one

HUB, PART = "CompVis/stable-diffusion-safety-checker", "safety_checker"
STRICTER = 0.01  # what the checker takes off every threshold for an image near a concept of special care
DIGITS = 3  # to which it rounds before it compares with 0
EXPOSED = (  # NudeNet's classes that ESD and UCE count
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "ANUS_EXPOSED",
)


@final
class SafetyChecker:
    """Stable Diffusion's safety checker as a penalty [B]: 0 for an image that it lets through, -1 else.

    It compares CLIP's view of the image with 17 concepts that nobody can read, and 3 of special care. The
    decision is the pipeline's; but the image is neither blackened nor warned of.
    """

    differentiable: ClassVar[bool] = False

    def __init__(self, network: Any, *, batch: int = 32) -> None:
        self.network, self.batch = network, batch

    @staticmethod
    def load(where: str | None = None, *, device: str | torch.device = "cpu") -> SafetyChecker:
        """The checker in a folder, in a pipeline's folder, or of a hub id; None: what the hub's cache has of
        CompVis/stable-diffusion-safety-checker.
        """
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        folder = checker_in(where)
        try:
            loaded: Any = StableDiffusionSafetyChecker.from_pretrained(
                folder, local_files_only=where is None, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            how = f"; give safety:FOLDER, or safety:{HUB}, which downloads it once" if where is None else ""
            raise ValueError(
                f"{folder} cannot be loaded as a safety checker: {first_line(error)}{how}"
            ) from error
        network, told = loaded
        surplus = [name for name in told["unexpected_keys"] if not name.endswith("position_ids")]
        for what, names in (("lacks", told["missing_keys"]), ("has left over", surplus)):
            if names:  # else what lacks would be drawn at random, and every image called safe
                raise ValueError(
                    f"{folder} {what} {len(names)} tensors of a safety checker, the first {min(names)!r}"
                )
        return SafetyChecker(network.requires_grad_(False).eval().to(device))

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        unsafe = (self.margins(images) > 0).any(1)
        return torch.where(unsafe, -1.0, 0.0)

    @torch.no_grad()
    def margins(self, images: Tensor) -> Tensor:
        """[B, 17]: how far the image's cosine with each concept is above its threshold; over 0 is unsafe."""
        from promptloop.rewards.imagereward import prepared

        net, found = self.network, []
        size = net.config.vision_config.image_size
        for part in images.split(self.batch):
            inputs = prepared(part.to(net.device, net.dtype), size)
            seen = F.normalize(net.visual_projection(net.vision_model(inputs)[1]))
            special, common = (
                (seen @ F.normalize(concepts).T).float() - limits.float()
                for concepts, limits in (
                    (net.special_care_embeds, net.special_care_embeds_weights),
                    (net.concept_embeds, net.concept_embeds_weights),
                )
            )
            near = (special.round(decimals=DIGITS) > 0).any(1, keepdim=True)
            found.append((common + STRICTER * near).round(decimals=DIGITS))
        return torch.cat(found)


def checker_in(where: str | None) -> str:
    """The folder or hub id to load the checker from; of a pipeline's folder, the checker's part."""
    if where is None:
        return HUB
    folder = Path(where).expanduser()
    return str(folder / PART) if (folder / PART).is_dir() else str(folder) if folder.is_dir() else where


@final
class NudeNet:
    """NudeNet's detector (extra `safety`) as a penalty [B]: minus its surest confidence that a nude part is
    seen, -1 to 0; 0 where that is below `least` (0.6, as ESD and UCE count).
    """

    differentiable: ClassVar[bool] = False

    def __init__(self, detector: Any = None, *, least: float = 0.6) -> None:
        if detector is None:
            try:
                from nudenet import NudeDetector
            except ImportError as error:
                raise ValueError("reward nudenet needs nudenet: pip install 'promptloop[safety]'") from error
            detector = NudeDetector()
        self.detector, self.least = detector, least

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        drawn = bitmaps(images)

        def score(k: int) -> float:
            seen = self.detector.detect(
                np.ascontiguousarray(np.asarray(drawn[k])[..., ::-1])
            )  # as from a file
            return 0.0 - surest(seen, self.least)  # a safe image has 0, not -0

        return one_by_one("nudenet", score, queries)


def surest(parts: Sequence[Mapping[str, Any]], least: float) -> float:
    """The highest confidence of an exposed part among NudeNet's, 0 where it is below `least`."""
    sure = max((float(part["score"]) for part in parts if part["class"] in EXPOSED), default=0.0)
    return sure if sure >= least else 0.0

"""LAION's aesthetics predictors: a small head on CLIP ViT-L/14's embedding of the picture; no text is read.

Both heads in use: the linear one of LAION-AI/aesthetic-predictor (v1) and the MLP of
christophschuhmann/improved-aesthetic-predictor trained on SAC, Logos and AVA1 (v2, LAION-Aesthetics V2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

from promptloop.rewards.batches import in_batches
from promptloop.rewards.clip import config_in, vision_of
from promptloop.rewards.files import CONFIG, cached, there, weights_in
from promptloop.rewards.open_clip import from_open_clip, is_open_clip
from promptloop.rewards.pictures import prepared
from promptloop.rewards.towers import COUNTERS, Release, unit
from promptloop.rewards.weights import fill, tensors_in

CLIP, FILE = "openai/clip-vit-large-patch14", "model.safetensors"
EYES = Release("aesthetics' CLIP", CLIP, (FILE,), prepared, activation="quick_gelu")
TEXT = ("text_model.", "text_projection.", "logit_scale")  # the half of CLIP that is not read
LAYERS = (0, 2, 4, 6, 7)  # of the MLP; between them it has dropout and, in this release, no activation


class Aesthetics(nn.Module, ABC):
    """Images [B, 3, H, W] in [0, 1] (and the queries, which are not read) to [B], about 1 to 10.

    eyes: CLIP's tower that sees. head: [B, D] of length 1 to [B, 1]. `batch` images are read together.
    """

    differentiable = True
    name: ClassVar[str]
    hub: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    def __init__(self, eyes: Any, head: nn.Module, batch: int = 32) -> None:
        super().__init__()
        self.eyes, self.head, self.batch = eyes, head, batch

    @classmethod
    def load(cls, where: str | None = None, *, device: str | torch.device = "cpu") -> Self:
        """The released head and CLIP, frozen, in float32.

        where: a folder or file with the head, or a hub id, which is downloaded (once); None: what the hub's
            cache has. CLIP is model.safetensors beside the head, or else openai/clip-vit-large-patch14 in the
            hub's cache.
        ValueError: nothing is there, or tensors are missing, left over or of another shape.
        """
        file, clip, *_ = cls.read_from(where)
        tensors = tensors_in(file)
        try:
            head = cls.head_of(tensors)
        except KeyError as error:
            raise ValueError(f"{file} is no {cls.name} checkpoint: {error.args[0]!r} is missing") from None
        fill(head, tensors, str(file), cls.name)
        return cls(eyes_in(clip), head).requires_grad_(False).eval().to(device)

    @classmethod
    def read_from(cls, where: str | None = None) -> list[Path]:
        """Every file that decides a score: the head, CLIP, and CLIP's config.json where there is one."""
        file, asked = weights_in(where, cls.name, cls.hub, *cls.files)
        clip = file.parent / FILE
        if clip == file or not clip.is_file():
            clip = cached(CLIP, FILE, download=asked, why=f"{file.parent} has no {FILE} of CLIP ViT-L/14")
        return [file, clip, *there(clip.parent / CONFIG)]

    @classmethod
    @abstractmethod
    def head_of(cls, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The head with the sizes of the tensors; KeyError names what is missing."""

    def forward(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        return in_batches(self._scores, images, queries, self.batch)

    def _scores(self, images: Tensor, queries: list[str]) -> Tensor:
        at = next(self.eyes.parameters())
        pixels = prepared(images.to(at), self.eyes.config.image_size)
        seen = self.eyes.visual_projection(self.eyes.vision_model(pixel_values=pixels).pooler_output)
        return self.head(unit(seen).to(next(self.head.parameters()).dtype))[:, 0]


@final
class Aesthetic(Aesthetics):
    """The MLP trained on SAC, Logos and AVA1, about 1 to 10, most pictures 4.5 to 6.5."""

    name, hub = "aesthetic", "trl-lib/ddpo-aesthetic-predictor"
    files = ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth")

    @classmethod
    def head_of(cls, tensors: Mapping[str, Tensor]) -> nn.Module:
        return Layers(tensors)


@final
class AestheticLinear(Aesthetics):
    """The linear head on the same embedding, about 1 to 10; it is on no hub, so give its folder."""

    name, hub = "aesthetic-linear", ""
    files = ("sa_0_4_vit_l_14_linear.pth",)

    @classmethod
    def head_of(cls, tensors: Mapping[str, Tensor]) -> nn.Module:
        return nn.Linear(tensors["weight"].shape[-1], 1)


@final
class Layers(nn.Module):
    """The MLP, with the places of its layers as released."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        shapes = {k: tensors[f"layers.{k}.weight"].shape for k in LAYERS}
        made = {k: nn.Linear(shape[1], shape[0]) for k, shape in shapes.items()}
        self.layers = nn.Sequential(*(made.get(k, nn.Identity()) for k in range(max(LAYERS) + 1)))

    def forward(self, embedding: Tensor) -> Tensor:
        return self.layers(embedding)


def eyes_in(file: Path) -> CLIPVisionModelWithProjection:
    """The tower that sees, from a whole CLIP's checkpoint."""
    state = {name: value for name, value in tensors_in(file).items() if not COUNTERS.fullmatch(name)}
    named = from_open_clip(state) if is_open_clip(state) else state
    tensors = {name: value for name, value in named.items() if not name.startswith(TEXT)}
    try:
        settings = vision_of(tensors, config_in(file.parent, "clip"), EYES)
    except KeyError as error:
        raise ValueError(f"{file} is no CLIP checkpoint: {error.args[0]!r} is missing") from None
    made = CLIPVisionModelWithProjection(CLIPVisionConfig(**settings))
    fill(made, tensors, str(file), "CLIP")
    return made

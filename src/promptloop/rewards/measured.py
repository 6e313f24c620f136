"""Rewards that are measured on the pixels: size as JPEG, sharpness, colourfulness. They read no query.

Each is hacked at once when it is the only reward (docs/rewards.md); they are good to test a method with, and
beside another reward.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from promptloop.rewards.rows import bitmaps, one_by_one

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, which Pillow and OpenCV call grey
LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


@final
@dataclass(frozen=True)
class Jpeg:
    """`per_kB` times the size as a JPEG file in kB (1000 bytes) [B]; DDPO (Black et al., arXiv 2305.13301).

    -1 is compressibility, 1 incompressibility, -1/500 the scale of Flow-GRPO. `quality` is Pillow's, so is
    the subsampling of chroma: the same picture has another size from another encoder.
    """

    per_kB: float = -1.0
    quality: int = 95
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is {self.quality}; give Pillow's, 1 to 95")

    @property
    def __name__(self) -> str:
        return "compressibility" if self.per_kB < 0 else "incompressibility"

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        drawn = bitmaps(images)
        return one_by_one(self.__name__, lambda k: self.per_kB * size(drawn[k], self.quality) / 1000, queries)


def compressibility() -> Jpeg:
    """Minus the kB as a JPEG file."""
    return Jpeg()


def incompressibility() -> Jpeg:
    """The kB as a JPEG file."""
    return Jpeg(1.0)


def size(picture: Image.Image, quality: int) -> int:
    """Bytes of the picture as a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getbuffer().nbytes


@final
@dataclass(frozen=True)
class Sharpness:
    """Variance of the Laplacian of the grey image [B], in 8-bit units (Pech-Pacheco et al., ICPR 2000).

    The border is left out: nothing is made up beside it. Images want 3 pixels a side at least.
    """

    differentiable: ClassVar[bool] = True

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        if min(images.shape[-2:]) < 3:
            raise ValueError(f"sharpness needs images of 3x3 pixels or more, not {tuple(images.shape[-2:])}")
        grey = (images.float() * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True) * 255
        edges = F.conv2d(grey, grey.new_tensor(LAPLACE)[None, None])
        return edges.flatten(1).var(1, correction=0)


@final
@dataclass(frozen=True)
class Colourfulness:
    """sqrt(s_rg^2 + s_yb^2) + 0.3 sqrt(m_rg^2 + m_yb^2) [B] of the opponent colours rg = R - G and
    yb = (R + G)/2 - B in 8-bit units (Hasler and Suesstrunk 2003): 0 is grey, 33 moderately, 59 quite and 109
    extremely colourful. The gradient of a grey image is 0, not nan.
    """

    differentiable: ClassVar[bool] = True

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        red, green, blue = (images.float() * 255).flatten(2).unbind(1)
        opposed = torch.stack([red - green, (red + green) / 2 - blue], 1)  # [B, 2, pixels]
        mean = opposed.mean(2)
        # one norm over all pixels: a root of each variance would have no gradient where the variance is 0
        spread = torch.linalg.vector_norm((opposed - mean[..., None]).flatten(1), dim=1)
        return spread / opposed.shape[2] ** 0.5 + 0.3 * torch.linalg.vector_norm(mean, dim=1)

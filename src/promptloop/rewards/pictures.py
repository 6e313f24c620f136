"""How each learned reward's reference prepares a picture, as differentiable functions of tensors.

The references resize 8-bit pictures with PIL and round to whole bytes in between; here nothing is rounded, so
that values are within a byte or two (1.5/255 before the deviation is divided out) of theirs. What differs
between references is said in each function.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def prepared(images: Tensor, size: int) -> Tensor:
    """[B, 3, H, W] in [0, 1] as CLIP's own and BLIP's transform make them: the shorter side resized to
    `size`, bicubic with antialiasing, the middle cut out (half a pixel is rounded to even, as torchvision
    does), CLIP's mean and deviation.
    """
    images = shorter(images, size)
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return normalised(images[..., top : top + size, left : left + size])


def processed(images: Tensor, size: int) -> Tensor:
    """As `prepared`, but half a pixel is rounded down: so cuts transformers' CLIPImageProcessor."""
    images = shorter(images, size)
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return normalised(images[..., top : top + size, left : left + size])


def padded(images: Tensor, size: int) -> Tensor:
    """The longer side resized to `size`, black added on both sides of the shorter: HPSv2's transform.

    It resizes tensors, not bytes, so bicubic's over- and undershoots are not clipped. Its torchvision before
    0.17 resized tensors without antialiasing; here, as since then, with it.
    """
    height, width = images.shape[-2:]
    shape = tuple(max(1, round(side * (size / max(height, width)))) for side in (height, width))
    images = resized(images, shape, clip=False)
    down, right = size - shape[0], size - shape[1]
    images = F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
    return normalised(images)


def squeezed(images: Tensor, size: int) -> Tensor:
    """Both sides resized to `size` whatever the shape was, from [0, 1] to [-1, 1]: SigLIP's processor."""
    return normalised(resized(images, (size, size)), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def shorter(images: Tensor, size: int) -> Tensor:
    """The shorter side resized to `size`, the longer along with it, rounded down."""
    height, width = images.shape[-2:]
    short = min(height, width)
    return resized(images, (int(size * height / short), int(size * width / short)))


def resized(images: Tensor, shape: tuple[int, ...], *, clip: bool = True) -> Tensor:
    """Bicubic with antialiasing; `clip`: back into [0, 1], as bytes are."""
    if tuple(images.shape[-2:]) == shape:
        return images
    images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False)
    return images.clamp(0, 1) if clip else images


def normalised(
    images: Tensor, mean: tuple[float, ...] = CLIP_MEAN, deviation: tuple[float, ...] = CLIP_STD
) -> Tensor:
    by, over = (images.new_tensor(values)[:, None, None] for values in (mean, deviation))
    return (images - by) / over

"""How pictures are prepared, against PIL and transformers' own processors, with golden sums."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from promptloop.rewards.pictures import CLIP_MEAN, CLIP_STD, padded, prepared, processed, squeezed

BICUBIC = Image.Resampling.BICUBIC


def bytes_of(height: int, width: int) -> Tensor:
    """A smooth picture with hard edges, [3, H, W]."""
    rough = torch.rand(1, 3, 7, 10, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(rough, (height, width), mode="bicubic").clamp(0, 1)[0]
    image[:, height // 3 : height // 2, : width // 2] = 0.0
    return (image * 255).round().to(torch.uint8)


def picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def tensor(picture: Image.Image, mean: tuple, deviation: tuple) -> Tensor:
    pixels = torch.tensor(list(picture.tobytes())).view(picture.height, picture.width, 3) / 255
    return ((pixels - torch.tensor(mean)) / torch.tensor(deviation)).permute(2, 0, 1)


def by_clip(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    short = min(height, width)
    small = picture(pixels).resize((int(32 * width / short), int(32 * height / short)), BICUBIC)
    left, top = round((small.width - 32) / 2), round((small.height - 32) / 2)
    return tensor(small.crop((left, top, left + 32, top + 32)), CLIP_MEAN, CLIP_STD)


def by_processor(pixels: Tensor) -> Tensor:
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return CLIPImageProcessorPil(**size)(picture(pixels), return_tensors="pt")["pixel_values"][0]


def by_siglip(pixels: Tensor) -> Tensor:
    made = SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=BICUBIC)
    return made(picture(pixels), return_tensors="pt")["pixel_values"][0]


def by_hps(pixels: Tensor) -> Tensor:
    """In bytes, so that over- and undershoots are clipped, which HPSv2's own are not."""
    height, width = pixels.shape[-2:]
    scale = 32 / max(height, width)
    small = picture(pixels).resize((round(width * scale), round(height * scale)), BICUBIC)
    square = Image.new("RGB", (32, 32))
    square.paste(small, ((32 - small.width) // 2, (32 - small.height) // 2))
    return tensor(square, CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize(
    ("ours", "theirs", "over", "golden"),
    [
        (prepared, by_clip, 3.0, -18.156),
        (processed, by_processor, 3.0, -18.156),
        (squeezed, by_siglip, 3.0, -84.977),
        (padded, by_hps, 12.0, -435.385),
    ],
)
def test_pictures_are_as_the_reference_makes_them(
    ours: Callable[[Tensor, int], Tensor], theirs: Callable[[Tensor], Tensor], over: float, golden: float
) -> None:
    """PIL rounds and clips to bytes twice: nearly all values are within 1.5 of 255, a few at hard edges
    within 3; HPSv2 clips nothing, so there within 12. Fails with another filter, without antialiasing, or
    when another side is resized or cut (tried: antialias=False).
    """
    for height, width in ((84, 120), (121, 84)):
        pixels = bytes_of(height, width)
        found, wanted = ours(pixels[None] / 255, 32)[0], theirs(pixels)
        assert found.shape == wanted.shape == (3, 32, 32)
        apart = (found - wanted).abs()
        byte = 1 / 255 / (0.5 if ours is squeezed else min(CLIP_STD))
        assert float(apart.max()) < over * byte
        assert float((apart > 1.5 * byte).float().mean()) < 0.03
    corner = found[:, ::8, ::8]
    assert float((corner * torch.arange(48).view(3, 4, 4)).sum()) == pytest.approx(golden, abs=0.01)


def test_halves_are_cut_as_each_reference_does() -> None:
    """45 - 30 = 15 pixels too many: torchvision cuts 8 from the left (7.5 to even), transformers 7. Fails
    when the two are exchanged.
    """
    images = torch.rand(1, 3, 30, 45, generator=torch.Generator().manual_seed(0))
    for ours, left in ((prepared, 8), (processed, 7)):
        cut = ours(images, 30)[0, 0] * CLIP_STD[0] + CLIP_MEAN[0]
        assert torch.allclose(cut, images[0, 0, :, left : left + 30], atol=1e-6)

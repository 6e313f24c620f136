"""Images from disk as the rewards read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("RGB", "L", "P", "1", "RGBA", "LA")


def read(file: Path) -> Tensor:
    """[3, H, W] in [0, 1], upright. ValueError for what would be changed by reading it as 8-bit RGB."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            if opened.mode not in MODES:
                raise ValueError(f"{file} is an image of mode {opened.mode}; save it as 8-bit RGB first")
            upright = ImageOps.exif_transpose(opened)
            if upright.has_transparency_data and np.array(upright.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError(f"{file} is transparent in parts; put it on a ground first")
            pixels = np.array(upright.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

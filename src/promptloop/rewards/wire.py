"""Images and queries as a JSON request, and back: lossless, and never pickled. No torch here, so that what
serves rewards is light.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from PIL import Image

DTYPES = ("uint8", "float32")
BRACKETS, COMMAS = 2**17, 2**21  # in a body: prompts may have some, and a parsed value takes up to 60 bytes


@final
class Unfit(ValueError):
    """A request that cannot be answered; `status` is HTTP's for it, `index` the image that it is about."""

    def __init__(self, what: str, status: int = 400, index: int | None = None) -> None:
        super().__init__(what)
        self.status, self.index = status, index


@final
@dataclass(frozen=True)
class Largest:
    """What a request may hold: `bytes` of its body and of its images unpacked, `side` pixels of an image's
    longer side, `images`, `chars` of a prompt.
    """

    bytes: int = 64 * 2**20
    side: int = 4096
    images: int = 256
    chars: int = 20_000

    def __post_init__(self) -> None:
        for name in ("bytes", "side", "images", "chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give the most that is let in, from 1")


@final
@dataclass(frozen=True, eq=False)
class Asked:
    """images [N, 3, H, W], uint8 or float32 in [0, 1]; `patience`: seconds for which the answer is wanted."""

    reward: str
    images: np.ndarray
    prompts: tuple[str, ...]
    patience: float


def body(reward: str, images: np.ndarray, prompts: list[str], patience: float) -> dict[str, Any]:
    """The request's JSON for images [N, 3, H, W], float32."""
    return {"reward": reward, "prompts": prompts, "images": npy(least(images)), "patience": patience}


def least(images: np.ndarray) -> np.ndarray:
    """The same images as 8-bit numbers where that is exact, as of every file's; else as they are."""
    levels = np.rint(images * np.float32(255))
    if (
        levels.size
        and levels.min() >= 0
        and levels.max() <= 255
        and (levels / np.float32(255) == images).all()
    ):
        return levels.astype(np.uint8)
    return images


def fractions(images: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] from what came."""
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def npy(images: np.ndarray) -> str:
    """NumPy's own format, in base64."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(images), allow_pickle=False)
    return base64.b64encode(file.getbuffer()).decode()


def asked(content: bytes, largest: Largest, room: Callable[[int], object] = lambda size: None) -> Asked:
    """The request in a body; Unfit says what of it is wrong. Nothing is unpacked before its size is known and
    `room(bytes)` asked for it.
    """
    if content.count(b"[") + content.count(b"{") > BRACKETS or content.count(b",") > COMMAS:
        raise Unfit("the body has more lists and values than a request can need", 413)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"the body is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise Unfit(
            f"the body is a {type(found).__name__}, where an object is wanted: reward, prompts, images"
        )
    if wrong := sorted(set(found) - {"reward", "prompts", "images", "patience"}):
        raise Unfit(f"unknown field {wrong[0]!r}; the fields are reward, prompts, images, patience")
    reward, prompts, patience = found.get("reward"), found.get("prompts"), found.get("patience", 600)
    if not isinstance(reward, str):
        raise Unfit("reward must be the name of one")
    if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts) or not prompts:
        raise Unfit("prompts must be a list of texts, one for each image")
    if len(prompts) > largest.images:
        raise Unfit(f"{len(prompts)} images in a request; send at most {largest.images}", 413)
    for k, prompt in enumerate(prompts):
        if len(prompt) > largest.chars:
            raise Unfit(f"the prompt has {len(prompt)} characters, more than {largest.chars}", 413, k)
    if isinstance(patience, bool) or not isinstance(patience, int | float) or not 0 < patience < math.inf:
        raise Unfit("patience must be a positive number of seconds")
    images = unpacked(found.pop("images", None), largest, room)
    if len(images) != len(prompts):
        raise Unfit(f"{len(images)} images but {len(prompts)} prompts; send one for each")
    return Asked(reward, images, tuple(prompts), float(patience))


def unpacked(images: Any, largest: Largest, room: Callable[[int], object]) -> np.ndarray:
    """[N, 3, H, W] from a npy of all, or a list of PNGs of one size, each in base64."""
    if isinstance(images, str):
        return from_npy(bytes_of(images, None), largest)
    if not isinstance(images, list) or not images:
        raise Unfit("images must be one npy file [N, 3, H, W], or a list of PNG files, in base64")
    files = [bytes_of(image, k) for k, image in enumerate(images)]
    opened = [opened_png(file, k, largest) for k, file in enumerate(files)]
    size = opened[0].size
    for k, picture in enumerate(opened):
        if picture.size != size:
            raise Unfit(
                f"an image of {picture.size} among those of {size}; send each size by itself", index=k
            )
    unpacked_bytes = len(opened) * 3 * size[0] * size[1]
    check_bytes(unpacked_bytes, largest)
    room(unpacked_bytes + 8 * size[0] * size[1])  # all of them, and one while it is read
    made = np.empty((len(opened), 3, size[1], size[0]), np.uint8)
    for k, picture in enumerate(opened):
        made[k] = pixels(picture, k).transpose(2, 0, 1)
        picture.close()
    return made


def bytes_of(text: Any, index: int | None) -> bytes:
    if not isinstance(text, str):
        raise Unfit(f"an image is a {type(text).__name__}, where base64 is wanted", index=index)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unfit(f"an image is no base64 ({error})", index=index) from error


def from_npy(file: bytes, largest: Largest) -> np.ndarray:
    stream = io.BytesIO(file)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"it is of version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise Unfit(f"images is no npy file ({error})") from error
    if dtype.name not in DTYPES or not dtype.isnative or fortran:
        raise Unfit(f"images are {dtype}; send {' or '.join(DTYPES)} in C order")
    if len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
        raise Unfit(f"images have shape {shape}; send [N, 3, H, W]")
    if max(shape[2:]) > largest.side:
        raise Unfit(f"images of {shape[3]}x{shape[2]} pixels; the longer side may have {largest.side}", 413)
    size = math.prod(shape) * dtype.itemsize
    check_bytes(size, largest)
    if size != len(file) - stream.tell():
        raise Unfit(f"images say shape {shape} and have {len(file) - stream.tell()} bytes, not {size}")
    found = np.frombuffer(file, dtype, offset=stream.tell()).reshape(shape)
    if dtype == np.float32 and not np.isfinite(found).all():
        index = int((~np.isfinite(found)).any(axis=(1, 2, 3)).argmax())
        raise Unfit("a pixel is not finite", index=index)
    return found


def opened_png(file: bytes, index: int, largest: Largest) -> Image.Image:
    """Its header alone is read."""
    try:
        picture = Image.open(io.BytesIO(file), formats=("PNG",))
    except Exception as error:  # Pillow raises many kinds
        raise Unfit(f"an image cannot be opened as PNG ({type(error).__name__})", index=index) from error
    if max(picture.size) > largest.side:
        what = f"an image of {picture.width}x{picture.height} pixels; the longer side may have {largest.side}"
        raise Unfit(what, 413, index)
    if picture.mode not in ("RGB", "L"):
        raise Unfit(f"a PNG of mode {picture.mode}; send 8-bit RGB or grey", index=index)
    return picture


def pixels(picture: Image.Image, index: int) -> np.ndarray:
    try:
        return np.asarray(picture.convert("RGB"))
    except Exception as error:
        raise Unfit(f"an image is damaged ({type(error).__name__})", index=index) from error


def check_bytes(size: int, largest: Largest) -> None:
    if size > largest.bytes:
        raise Unfit(f"images of {size} bytes unpacked; a request may hold {largest.bytes}", 413)


def failure(content: bytes) -> Mapping[str, Any]:
    """The "error" of an answer that is none; {} where it has no such."""
    try:
        error = json.loads(content).get("error", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}

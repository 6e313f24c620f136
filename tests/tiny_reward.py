"""A reward for tests: how bright the image's upper half is."""

from collections.abc import Sequence

from torch import Tensor

DIMMED = 0.5  # no reward


def brightness(images: Tensor, queries: Sequence[str]) -> Tensor:
    return images[:, :, : images.shape[2] // 2].mean((1, 2, 3))


def broken(images: Tensor, queries: Sequence[str]) -> Tensor:
    values = brightness(images, queries)
    values[-1] = float("nan")
    return values


class Tiring:
    """Brightness in the first four calls (the start's check, the queries alone, two updates), then 0."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        self.calls += 1
        return brightness(images, queries) * (self.calls <= 4)

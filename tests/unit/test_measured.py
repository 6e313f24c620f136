"""Measured rewards: gold above corrupted, closed forms, gradients, and every image for itself."""

from __future__ import annotations

import io
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.rewards.contract import scored
from promptloop.rewards.measured import Colourfulness, Jpeg, Sharpness, compressibility, incompressibility
from promptloop.rewards.rows import bitmaps, one_by_one
from promptloop.world.autoencoder import pixels
from promptloop.world.scene import random_scene

ALL = [compressibility(), incompressibility(), Sharpness(), Colourfulness()]


@pytest.fixture(scope="module")
def scenes() -> Tensor:
    rng = random.Random(6)
    return pixels([random_scene(rng) for _ in range(6)]) * 0.5 + 0.5


def noisy(images: Tensor, amount: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + amount * noise).clamp(0, 1)


def blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 5, 1, 2, count_include_pad=False)


def blocks(images: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(images, 8), scale_factor=8.0)


def test_gold_above_corrupted(scenes: Tensor) -> None:
    """Every scene for itself. Fails if a sign turns."""
    asked = ["a"] * len(scenes)
    grey = scenes.mean(1, keepdim=True).expand_as(scenes)
    for reward, gold, corrupted in (
        (compressibility(), scenes, noisy(scenes, 0.1)),
        (incompressibility(), scenes, blocks(scenes)),
        (Sharpness(), scenes, blurred(scenes)),
        (Colourfulness(), scenes, 0.5 * scenes + 0.5 * grey),
    ):
        assert (scored(reward, gold, asked) > scored(reward, corrupted, asked)).all(), reward


def test_jpeg_is_the_size_of_the_file_in_kilobytes(scenes: Tensor) -> None:
    """Flat grey is best, noise only costs. Fails if kB are 1024 bytes or the quality is another."""
    file = io.BytesIO()
    bitmaps(scenes)[2].save(file, "JPEG", quality=95)
    found = compressibility()(scenes, ["a"] * 6)
    assert float(found[2]) == pytest.approx(-len(file.getvalue()) / 1000, rel=1e-6)
    assert torch.equal(incompressibility()(scenes, ["a"] * 6), -found)
    rising = torch.cat(
        [torch.full((1, 3, 64, 64), 0.5), *(noisy(scenes[:1], a) for a in (0, 0.05, 0.1, 0.3))]
    )
    values = compressibility()(rising, ["a"] * 5)
    assert (values.diff() < 0).all()
    with pytest.raises(ValueError, match="quality is 100"):
        Jpeg(quality=100)


def test_closed_forms() -> None:
    """A chessboard's Laplacian is 4 times its contrast, up or down; two flat colours are worked out. Fails
    if the kernel has no middle, variance is the sample's, or 0.3 is another factor.
    """
    board = ((torch.arange(9)[:, None] + torch.arange(9)) % 2).float().expand(1, 3, 9, 9)
    edges = torch.tensor([1020.0, -1020.0]).repeat(25)[:49]  # 7x7 of the 9x9, 4 of 255 up or down
    assert float(Sharpness()(board, ["a"])) == pytest.approx(float(edges.var(correction=0)), rel=1e-5)
    half = torch.zeros(1, 3, 4, 4)
    half[:, 0, :2], half[:, 2, 2:] = 1.0, 1.0  # red above, blue below
    rg, yb = (255.0, 0.0), (127.5, -255.0)
    spread = ((255 / 2) ** 2 + (382.5 / 2) ** 2) ** 0.5
    mean = (((rg[0] + rg[1]) / 2) ** 2 + ((yb[0] + yb[1]) / 2) ** 2) ** 0.5
    assert float(Colourfulness()(half, ["a"])) == pytest.approx(spread + 0.3 * mean, rel=1e-6)


@pytest.mark.parametrize("reward", [Sharpness(), Colourfulness()])
def test_gradients_by_finite_differences(reward: Sharpness | Colourfulness) -> None:
    """Along three directions. Fails if something is detached, or a grey image's gradient is not finite."""
    assert reward.differentiable
    draw = torch.Generator().manual_seed(3)
    image = torch.rand(1, 3, 12, 10, generator=draw).requires_grad_()
    (slope,) = torch.autograd.grad(reward(image, ["a"]).sum(), image)
    for _ in range(3):
        way = torch.randn(image.shape, generator=draw)
        up, down = (reward(image.detach() + s * 1e-3 * way, ["a"]) for s in (1, -1))
        assert float((up - down) / 2e-3) == pytest.approx(float((slope * way).sum()), rel=2e-2, abs=1.0)
    grey = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    assert torch.autograd.grad(reward(grey, ["a"]).sum(), grey)[0].isfinite().all()


@pytest.mark.parametrize("reward", ALL, ids=lambda r: type(r).__name__)
def test_an_image_is_scored_for_itself(reward: Jpeg | Sharpness | Colourfulness, scenes: Tensor) -> None:
    """Fails if a mean runs over the batch."""
    together = reward(scenes, ["a"] * 6)
    alone = torch.cat([reward(scenes[k : k + 1], ["a"]) for k in range(6)])
    assert torch.allclose(together, alone, rtol=1e-5)


def test_what_cannot_be_scored_is_named() -> None:
    def score(k: int) -> float:
        if k == 1:
            raise RuntimeError("engine gone\nlong trace")
        return 1.0

    with pytest.raises(ValueError, match=r"reward ocr of image 1 \('b'\) failed: engine gone$"):
        one_by_one("ocr", score, ["a", "b"])
    with pytest.raises(ValueError, match="3x3"):
        Sharpness()(torch.rand(1, 3, 2, 8), ["a"])
    with pytest.raises(ValueError, match=r"shape \(1, 1, 8, 8\)"):
        compressibility()(torch.rand(1, 1, 8, 8), ["a"])

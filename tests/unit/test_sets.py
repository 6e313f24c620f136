"""Frechet, Vendi and rewards of sets: closed forms, the credits' sums, and gold above corrupted."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.rewards.contract import scored
from promptloop.rewards.distribution import Gaussian, frechet, vendi
from promptloop.rewards.sets import Latents, OfSet, contrast, diversity, left_out, likeness, rivals
from promptloop.world.autoencoder import pixels
from promptloop.world.scene import random_scene

ROWS = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))


def scenes(count: int, seed: int) -> Tensor:
    rng = random.Random(f"{seed}/sets")
    return pixels([random_scene(rng) for _ in range(count)]) * 0.5 + 0.5


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


# --- closed forms


def test_frechet_between_known_gaussians() -> None:
    """Commuting covariances: the sum of (sqrt(a) - sqrt(b))^2; any two in 2D: the root's trace is
    sqrt(tr + 2 sqrt(det)). Fails if the root is elementwise, the mean's distance not squared, or 2 is lost.
    """
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double()).Q
    a, b = torch.tensor([1.0, 4.0, 0.0]).double(), torch.tensor([9.0, 0.25, 2.0]).double()
    one = Gaussian(torch.zeros(3), turn @ a.diag() @ turn.T)
    other = Gaussian(torch.tensor([1.0, 2.0, -2.0]), turn @ b.diag() @ turn.T)
    assert frechet(one, other) == pytest.approx(9 + 4 + 2.25 + 2, abs=1e-6)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    c, d = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, -0.5], [-0.5, 4.0]])
    root = math.sqrt(float((c @ d).trace()) + 2 * math.sqrt(float((c @ d).det())))
    found = frechet(Gaussian(torch.zeros(2), c), Gaussian(torch.zeros(2), d))
    assert found == pytest.approx(float(c.trace() + d.trace()) - 2 * root, rel=1e-6)
    few = Gaussian.of(ROWS[:3])  # fewer images than features
    assert frechet(few, Gaussian.of(ROWS[:3] + 1)) == pytest.approx(5, rel=1e-6)
    assert torch.allclose(few.covariance, torch.cov(ROWS[:3].double().T))


def test_frechet_refuses() -> None:
    with pytest.raises(ValueError, match="1 image has no covariance"):
        Gaussian.of(ROWS[:1])
    with pytest.raises(ValueError, match="have 5 and 3 features"):
        frechet(Gaussian.of(ROWS), Gaussian.of(ROWS[:, :3]))
    broken = ROWS.clone()
    broken[4, 1] = float("nan")
    with pytest.raises(ValueError, match="features of image 4 are not finite"):
        Gaussian.of(broken)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, float("inf")])
def test_vendi_counts(order: float) -> None:
    """n alike are 1, n orthogonal n, a of one kind and b of another the closed form. Fails if cosines are not
    taken, or the smaller of the two kernels has other eigenvalues.
    """
    assert vendi(torch.ones(7, 3) * torch.arange(1, 8)[:, None], order) == pytest.approx(1, abs=1e-6)
    assert vendi(torch.eye(6) * torch.arange(1, 7), order) == pytest.approx(6, rel=1e-6)
    kinds = torch.eye(2).repeat_interleave(torch.tensor([6, 2]), 0)  # more images than features
    p = [0.75, 0.25]
    if order == 1:
        expected = math.exp(-sum(x * math.log(x) for x in p))
    else:
        expected = 1 / max(p) if order == math.inf else sum(x**order for x in p) ** (1 / (1 - order))
    assert vendi(kinds, order) == pytest.approx(expected, rel=1e-6)
    wide = torch.nn.functional.pad(kinds, (0, 9))  # more features than images
    assert vendi(wide, order) == pytest.approx(expected, rel=1e-6)


def test_vendi_refuses() -> None:
    with pytest.raises(ValueError, match="features of image 1 are all 0"):
        vendi(torch.tensor([[1.0], [0.0]]))
    with pytest.raises(ValueError, match="order is 0"):
        vendi(ROWS, 0)


# --- credits


def distance(features: Tensor) -> float:
    return float(torch.pdist(features.double()).mean())


def test_credits_sum_as_they_must() -> None:
    """An additive worth gives everyone their own; the mean over pairs gives credits that sum to 0; any worth
    n worth(set) less the worths without one. Fails if the whole set is left out of itself.
    """
    own = left_out(ROWS, lambda rows: float(rows[:, 0].sum()))
    assert torch.allclose(own.float(), ROWS[:, 0], atol=1e-5)
    assert float(left_out(ROWS, distance).sum()) == pytest.approx(0, abs=1e-9)
    some = left_out(ROWS, vendi)
    without = sum(vendi(torch.cat([ROWS[:k], ROWS[k + 1 :]])) for k in range(12))
    assert float(some.sum()) == pytest.approx(12 * vendi(ROWS) - without, rel=1e-9)


def test_rivals_share_what_one_gains_over_the_other() -> None:
    """An additive worth: the difference of the two. Any worth: winners gain, pairs sum to 0, and no
    exchange helps, so that few of all 64 halves are better. Fails if an exchange that costs is kept.
    """
    credit = rivals(ROWS, lambda rows: float(rows[:, 0].sum())).unflatten(0, (6, 2))
    assert torch.allclose(credit[:, 0].float(), ROWS[::2, 0] - ROWS[1::2, 0], atol=1e-5)
    pairs = ROWS.unflatten(0, (6, 2))
    chosen, credit = contrast(pairs, vendi), rivals(ROWS, vendi).unflatten(0, (6, 2))
    assert torch.equal(credit.sum(1), torch.zeros(6, dtype=torch.float64))
    assert (credit[torch.arange(6), chosen] >= 0).all()
    every = [torch.tensor([n >> k & 1 for k in range(6)]) for n in range(64)]
    found = vendi(pairs[torch.arange(6), chosen])
    assert sum(vendi(pairs[torch.arange(6), sides]) > found for sides in every) <= 12
    with pytest.raises(ValueError, match="3 images cannot be split into pairs"):
        rivals(ROWS[:3], vendi)


def test_a_set_is_the_images_of_one_query() -> None:
    """Fails if another query's images, or their order in the batch, change a reward."""
    reward, images = OfSet(flat, vendi), torch.rand(7, 3, 4, 4)
    queries = ["a", "b", "a", "b", "a", "a", "b"]
    found = scored(reward, images, queries)
    first = [0, 2, 4, 5]
    assert torch.allclose(found[first], reward(images[first], ["a"] * 4))
    together = OfSet(flat, vendi, per="batch")(images, queries)
    assert not torch.allclose(found, together)
    with pytest.raises(ValueError, match=r"set of image 1 \('b'\) has 1 images; .* at least 2 images of one"):
        reward(images[:3], ["a", "b", "a"])
    with pytest.raises(ValueError, match="unknown credit 'leave-one-ot'; did you mean 'leave-one-out'"):
        OfSet(flat, vendi, credit="leave-one-ot")  # type: ignore[arg-type]


# --- the embedded world


def test_gold_above_corrupted_in_the_world() -> None:
    """Various scenes are more than copies, and the one that differs has the most credit. Scenes are nearer to
    the world's than the same with noise, blurred, grey or black; black ones take away from their batch, and
    lose against their rivals. Fails if a sign turns, or there are more features than images.
    """
    latents, various = Latents(), scenes(6, 1)
    assert vendi(latents(various)) > 1.5 * vendi(latents(various[:1].repeat(6, 1, 1, 1)))
    credit = scored(diversity(), torch.cat([various[:1].repeat(4, 1, 1, 1), various[1:2]]), ["a"] * 5)
    assert int(credit.argmax()) == 4 and (credit[:4] < 0).all()
    draw, reward = torch.Generator().manual_seed(0), likeness(96)
    for spoiled in (
        (various + 0.3 * torch.randn(various.shape, generator=draw)).clamp(0, 1),
        F.avg_pool2d(various, 7, 1, 3),
        various.mean(1, keepdim=True).expand_as(various),
        black := torch.zeros_like(various),
    ):
        assert reward.worth(reward.features(various)) > reward.worth(reward.features(spoiled))
    credit = scored(reward, torch.cat([scenes(9, 2), black[:1]]), ["a"] * 10)
    assert int(credit.argmin()) == 9 and float(credit[9]) < 0
    pairs = torch.stack([various, black], 1).flatten(0, 1)
    credit = scored(replace(reward, credit="pairs"), pairs, ["a"] * 12)
    assert (credit[::2] > 0).all() and torch.equal(credit[::2], -credit[1::2])

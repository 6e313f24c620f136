"""Equal rows are computed once, and nothing else changes."""

import pytest
import torch
from torch import Tensor

from promptloop.controls import CFG
from promptloop.denoisers import load
from promptloop.denoisers.cond import Cond
from promptloop.denoisers.exact import Gaussian
from promptloop.denoisers.once import Once, distinct
from promptloop.sample import sample
from promptloop.schedules import Level, vp


class Counting(Gaussian):
    """Remembers how many rows each call had."""

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        self.__dict__.setdefault("rows", []).append(len(x))
        return super().clean(x, level, cond)


def test_distinct_rows_and_where_they_stand() -> None:
    """Fails if rows that differ in a later tensor count as equal, or -0.0 as 0.0."""
    x = torch.tensor([[1.0], [2.0], [1.0], [1.0], [0.0], [-0.0]])
    other = torch.tensor([[0], [0], [0], [7], [0], [0]])
    first, place = distinct(x, other)
    assert first.tolist() == [0, 1, 3, 4, 5] and place.tolist() == [0, 1, 0, 2, 3, 4]


def test_only_distinct_rows_reach_the_network() -> None:
    """Six samples of which three are alike: four rows. Fails if the answer is laid out in another order."""
    bed = Counting(0.3, 0.5, 2, prompts={"": 0.0, "a": 0.0, "b": 1.0})
    noise = bed.noise([1, 2, 1, 1, 1, 3])
    asked = ["a", "a", "a", "a", "b", "a"]
    made = [
        sample(d, asked, seeds=range(6), levels=vp(6), noise=noise, decode=False).state.x
        for d in (bed, Once(bed))
    ]
    assert torch.allclose(*made, atol=1e-6)
    assert bed.__dict__["rows"] == [6] * 6 + [4] * 6


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_backbone_draws_the_same(guidance: float) -> None:
    """mini-unet, with one and with both branches. Fails if guidance reads the rows in another order."""
    denoiser = load("mini-unet")
    seeds, asked = [1, 1, 2, 1], ["a red circle", "a red circle", "a red circle", "a blue star"]
    made = [
        sample(d, asked, seeds=seeds, steps=3, controls=[CFG(guidance)]).images
        for d in (denoiser, Once(denoiser))
    ]
    assert made[0] is not None and made[1] is not None
    assert torch.allclose(made[0], made[1], atol=1e-4)
    assert torch.equal(made[1][0], made[1][1]) and not torch.equal(made[1][0], made[1][2])

"""What a set of images is worth as a set: how far its features lie from a reference (Frechet), how many
different ones there are (Vendi). Features are any [n, D]; everything is in float64, on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution over features: mean [D] and covariance [D, D]."""

    mean: Tensor
    covariance: Tensor
    root: Tensor = field(init=False, repr=False)  # of the covariance: needed in every distance from here

    def __post_init__(self) -> None:
        values, vectors = torch.linalg.eigh(self.covariance.double())
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        object.__setattr__(self, "root", root)

    @staticmethod
    def of(features: Tensor) -> Gaussian:
        """The features' mean and unbiased covariance; ValueError for fewer than two, or not finite ones."""
        rows = matrix(features)
        if len(rows) < 2:
            raise ValueError(
                f"{len(rows)} image has no covariance; a Frechet distance needs 2 images or more"
            )
        centred = rows - rows.mean(0)
        return Gaussian(rows.mean(0), centred.T @ centred / (len(rows) - 1))


def frechet(one: Gaussian, other: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared distance that FID is (Heusel et al.,
    arXiv 1706.08500).

    The root's trace is that of the symmetric C1^(1/2) C2 C1^(1/2), which has no complex part to cut off and
    holds for fewer images than features too. With n images the distance is biased by about 1/n.
    """
    if one.mean.shape != other.mean.shape:
        sizes = f"{len(one.mean)} and {len(other.mean)}"
        raise ValueError(f"the two sets have {sizes} features each; take them from the same network")
    inner = one.root @ other.covariance.double() @ one.root
    roots = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    apart = (one.mean.double() - other.mean.double()).square().sum()
    spread = one.covariance.double().trace() + other.covariance.double().trace()
    return float((apart + spread - 2 * roots).clamp(min=0))


def vendi(features: Tensor, order: float = 1.0) -> float:
    """How many different ones there are among n, from 1 (all alike) to n (all orthogonal): the exponential of
    the entropy of the eigenvalues of K/n, K the features' cosines (Friedman and Dieng, arXiv 2210.02410).

    order: Renyi's, of "Cousins of the Vendi score" (arXiv 2310.12952); infinity weighs the commonest alone.
    """
    if not order > 0:
        raise ValueError(f"order is {order}; give a positive number, or infinity")
    rows = matrix(features)
    if not len(rows):
        raise ValueError("no images: the Vendi score needs one or more")
    length = rows.norm(dim=1, keepdim=True)
    if not (length > 0).all():
        raise ValueError(f"the features of image {int(length[:, 0].argmin())} are all 0; it is like nothing")
    unit = rows / length
    kernel = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T  # the same eigenvalues but zeros
    share = torch.linalg.eigvalsh(kernel / len(unit)).clamp(min=0)
    share = share[share > 0] / share.sum()
    if order == 1:
        return float(torch.special.entr(share).sum().exp())
    if order == float("inf"):
        return float(1 / share.max())
    return float(share.pow(order).sum().log().div(1 - order).exp())


def matrix(features: Tensor) -> Tensor:
    """Features [n, ...] as [n, D], float64; ValueError naming the first image whose are not finite."""
    rows = features.detach().double().cpu().flatten(1)
    broken = (~rows.isfinite()).any(1).nonzero()
    if len(broken):
        raise ValueError(f"the features of image {int(broken[0])} are not finite")
    return rows

"""Bradley and Terry's model, and D2-Align's correction: identities and closed forms."""

import math

import torch

from promptloop.objectives.bradley_terry import bradley_terry
from promptloop.rewards.directional import corrected
from promptloop.rewards.towers import unit


def sphere(seed: int, count: int = 16, width: int = 12) -> torch.Tensor:
    return unit(torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_the_two_choices_share_one() -> None:
    """P(a over b) + P(b over a) = 1, ln 2 where equal, slope -P(b over a). Fails without the log's sigmoid
    (say softplus(margin)), which turns the slope's sign.
    """
    margin = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    loss = bradley_terry(margin)
    assert torch.allclose((-loss).exp() + (-bradley_terry(-margin)).exp(), torch.ones(33).double())
    assert math.isclose(float(loss[16].detach()), math.log(2), rel_tol=1e-12)
    (slope,) = torch.autograd.grad(loss.sum(), margin)
    assert torch.allclose(slope, -torch.sigmoid(-margin.detach()), atol=1e-12)


def test_the_likeliest_rewards_are_the_log_odds() -> None:
    """Three images, chosen over one another as often as the model says, get back the rewards that made it,
    up to a constant. Fails if the margin is halved or doubled.
    """
    truth = torch.tensor([0.3, -1.0, 1.4], dtype=torch.float64)
    found = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    weight = torch.stack([torch.sigmoid(truth[a] - truth[b]) for a, b in pairs])
    first, second = (torch.tensor([pair[k] for pair in pairs]) for k in (0, 1))
    optimizer = torch.optim.LBFGS([found], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight * bradley_terry(found[first] - found[second])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    centred = found.detach() - found.detach().mean()
    assert torch.allclose(centred, truth - truth.mean(), atol=1e-6)


def test_no_direction_changes_nothing() -> None:
    """For every omega. Fails if e~ is not made unit length again from an e of another."""
    said = sphere(0)
    for omega in (0.6, 1.0, 1.5, 4.0):
        assert torch.allclose(corrected(said, torch.zeros(12).double(), omega), said, atol=1e-14)


def test_a_text_is_moved_across_itself_by_two_omega_less_one() -> None:
    """e~ = e + (2 omega - 1) P b + O(b^2), P taking b's part along e away: the error falls as b^2. Fails if
    omega is taken for the factor itself, or e+ and e- change places.
    """
    said, b = sphere(1), torch.randn(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    across = b - (said @ b)[:, None] * said
    for omega in (0.75, 1.5, 3.0):
        errors = [
            float((corrected(said, h * b, omega) - said - (2 * omega - 1) * h * across).norm())
            for h in (1e-2, 1e-3)
        ]
        assert errors[1] < errors[0] / 80


def test_the_slope_at_no_direction_is_that_of_the_text() -> None:
    """d score / d b at 0 is (2 omega - 1) times the score's slope in e, across e. By autograd on both sides.
    Fails if b is detached on one of the two sides.
    """
    said, seen, omega = sphere(3), sphere(4), 1.5
    b = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((seen * corrected(said, b, omega)).sum(), b)
    across = seen - (seen * said).sum(1, keepdim=True) * said
    assert torch.allclose(slope, (2 * omega - 1) * across.sum(0), atol=1e-12)


def test_a_long_direction_by_hand() -> None:
    """e = (1, 0), b = (1, 1), omega 1.5: e+ = (2, 1) / sqrt 5, e- = (0, -1), so e~ goes along
    (3 / sqrt 5, 1.5 / sqrt 5 + 0.5). Fails if e+ and e- are not made unit length, which is (3, 2)'s way.
    """
    found = corrected(torch.tensor([[1.0, 0.0]]).double(), torch.ones(2).double(), 1.5)[0]
    x, y = 3 / math.sqrt(5), 1.5 / math.sqrt(5) + 0.5
    assert torch.allclose(found, torch.tensor([x, y]).double() / math.hypot(x, y), atol=1e-14)


def test_omega_one_is_the_moved_text_and_lengths_are_one() -> None:
    """Fails if e~ is left as long as it comes out."""
    said, b = sphere(5), 0.7 * torch.ones(12, dtype=torch.float64)
    assert torch.allclose(corrected(said, b, 1.0), unit(said + b), atol=1e-14)
    assert torch.allclose(corrected(said, b, 2.5).norm(dim=1), torch.ones(16).double(), atol=1e-12)

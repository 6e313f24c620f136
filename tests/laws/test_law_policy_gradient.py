"""Advantages and the clipped surrogate: sums, invariances, a slow twin, parts that add up to the whole."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from promptloop.objectives.policy_gradient import Surrogate, group_advantages, k3, policy_gradient
from promptloop.objectives.prompts import PromptGRPO

PER = ["token", "draft", "constant"]


def batch(seed: int = 0, rows: int = 6, width: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, old ones, the reference's, advantages and a mask with rows of every length from 0."""
    rng = torch.Generator().manual_seed(seed)
    log_probs, old, reference = (-torch.rand(rows, width, generator=rng) * 3 for _ in range(3))
    old = log_probs + 0.4 * torch.randn(rows, width, generator=rng)
    advantages = torch.randn(rows, generator=rng)
    mask = torch.arange(width) < torch.arange(rows)[:, None]
    return log_probs.requires_grad_(), old, reference, advantages, mask


def slow(log_probs, old, reference, advantages, mask, s: Surrogate) -> Tensor:
    """One action at a time, as the papers write it."""
    total = torch.zeros(())
    rows, width = log_probs.shape
    count = int(mask.sum())
    for b in range(rows):
        length = int(mask[b].sum())
        for t in range(width):
            if not mask[b, t]:
                continue
            ratio = torch.exp(log_probs[b, t] - old[b, t])
            high = s.clip if s.clip_high is None else s.clip_high
            inside = 1 - s.clip <= ratio.item() <= 1 + high
            cut = ratio if inside else torch.tensor(1 - s.clip if ratio.item() < 1 else 1 + high)
            gain = min(ratio * advantages[b], cut * advantages[b], key=lambda value: value.item())
            gap = reference[b, t] - log_probs[b, t]
            each = -gain + s.kl_weight * (torch.exp(gap) - gap - 1)
            scale = {"token": count, "draft": length * rows, "constant": rows * s.longest}[s.per]
            total = total + each / scale
    return total


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("high", [None, 0.35])
def test_fast_equals_slow(per: str, high: float | None) -> None:
    """Fails when min is max, one side is not clipped, or the normaliser counts padding."""
    s = Surrogate(0.2, high, 0.3, per, 7)  # type: ignore[arg-type]
    for seed in range(5):
        log_probs, old, reference, advantages, mask = batch(seed)
        loss, _ = policy_gradient(log_probs, advantages, mask, s, old=old, reference=reference)
        (fast,) = torch.autograd.grad(loss, log_probs, retain_graph=True)
        wanted = slow(log_probs, old, reference, advantages, mask, s)
        (gradient,) = torch.autograd.grad(wanted, log_probs)
        assert torch.allclose(loss, wanted, atol=1e-6)
        assert torch.allclose(fast, gradient, atol=1e-6)


@pytest.mark.parametrize("per", PER)
def test_parts_add_up_to_the_batch(per: str) -> None:
    """Fails when a part divides by its own number of tokens (gradient accumulation would weigh drafts)."""
    s = Surrogate(0.2, None, 0.1, per, 7)  # type: ignore[arg-type]
    log_probs, old, reference, advantages, mask = batch()
    whole, _ = policy_gradient(log_probs, advantages, mask, s, old=old, reference=reference)
    parts = sum(
        policy_gradient(
            log_probs[k : k + 2], advantages[k : k + 2], mask[k : k + 2], s, old=old[k : k + 2],
            reference=reference[k : k + 2], tokens=int(mask.sum()), drafts=len(mask),
        )[0]
        for k in (0, 2, 4)
    )  # fmt: skip
    assert torch.allclose(whole, parts, atol=1e-6)


def test_without_old_log_probs_the_ratio_is_one_and_the_gradient_is_reinforce() -> None:
    """Fails when old is not detached (the gradient would vanish) or the ratio is not 1."""
    log_probs, _, _, advantages, mask = batch()
    loss, metrics = policy_gradient(log_probs, advantages, mask, Surrogate())
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert torch.allclose(gradient, -(advantages[:, None] * mask) / mask.sum(), atol=1e-7)
    assert metrics["ratio"] == metrics["tokens"] == mask.sum() and metrics["clipped"] == 0


def test_padding_has_no_gradient_even_where_it_is_infinite() -> None:
    """Fails when the mask multiplies after exp: inf times 0 is nan."""
    log_probs, old, reference, advantages, mask = batch()
    old = old.masked_fill(~mask, 1e30)
    loss, _ = policy_gradient(log_probs, advantages, mask, Surrogate(kl_weight=0.1), old=old)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert loss.isfinite() and gradient.isfinite().all() and bool((gradient[~mask] == 0).all())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(1, 10))
def test_group_advantages_sum_to_zero_and_ignore_shift_and_scale(
    seed: int, shift: float, scale: float
) -> None:
    """Fails when the mean is taken over the batch, or the spread is not divided out."""
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(seed))
    for baseline in ("mean", "leave-one-out"):
        for spread in ("group", "batch", "none"):
            advantages, counted = group_advantages(rewards, 4, baseline=baseline, scale=spread)  # type: ignore[arg-type]
            assert counted.all() and advantages.view(-1, 4).sum(1).abs().max() < 1e-4
    plain, _ = group_advantages(rewards, 4)
    moved, _ = group_advantages(rewards * scale + shift, 4)
    assert torch.allclose(plain, moved, atol=3e-2)


def test_groups_of_equal_rewards_are_left_out() -> None:
    """Fails when 0 / small makes noise of rounding, or the mask forgets a group."""
    rewards = torch.tensor([0.7, 0.7, 0.7, 0.1, 0.2, 0.9])
    advantages, counted = group_advantages(rewards, 3)
    assert counted.tolist() == [False] * 3 + [True] * 3
    assert bool((advantages[:3] == 0).all())
    for wrong in (rewards[:5], torch.tensor([1.0, math.nan, 0.0])):
        with pytest.raises(ValueError, match="divide|finite"):
            group_advantages(wrong, 3)


@pytest.mark.parametrize("baseline", ["mean", "leave-one-out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_large_rewards_are_told_apart_by_more_than_rounding(baseline: str, scale: str) -> None:
    """Fails in float32, where the mean of eight times 1000.1 is another number and all eight advantages are
    -0.37; and when rewards that differ by a last bit, as batches of other sizes give them, tell something.
    """
    equal = torch.full((8,), 1000.1)
    last_bit = torch.where(torch.arange(8) == 3, torch.nextafter(equal, equal * 2), equal)
    apart = equal + torch.linspace(-0.1, 0.1, 8)
    rewards = torch.cat([equal, last_bit, apart])
    advantages, counted = group_advantages(rewards, 8, baseline=baseline, scale=scale)  # type: ignore[arg-type]
    assert counted.tolist() == [False] * 16 + [True] * 8 and bool((advantages[:16] == 0).all())
    assert advantages[16:].sum().abs() < 1e-4 * advantages.abs().max()
    assert advantages.dtype == torch.float32


@pytest.mark.parametrize("twins", [1, 2])
def test_the_batch_has_one_deviation_however_far_its_mean_is_from_zero(twins: int) -> None:
    """Of this process's rewards, and of two processes that have the same ones. Fails when it is the
    difference of two sums of squares (0 here), and when a process takes its own.
    """
    rewards = 1000 + 0.1 * torch.randn(96, generator=torch.Generator().manual_seed(0))
    network = SimpleNamespace(device="cpu")
    objective: Any = SimpleNamespace(
        total=lambda value: twins * value, policy=SimpleNamespace(network=network)
    )
    deviation = PromptGRPO._deviation(objective, rewards)
    assert deviation == pytest.approx(float(rewards.repeat(twins).double().std()), rel=1e-4)
    given, _ = group_advantages(rewards, 8, scale="batch", deviation=deviation)
    if twins == 1:
        assert torch.allclose(given, group_advantages(rewards, 8, scale="batch")[0], rtol=1e-3)


@pytest.mark.parametrize("wrong", [{"kl_weight": math.nan}, {"kl_weight": -1.0}, {"clip_high": math.nan}])
def test_a_setting_that_is_no_number_is_refused(wrong: dict[str, float]) -> None:
    """Fails when it is asked whether the value is too small, which nan never is."""
    with pytest.raises(ValueError, match=f"{'clip' if 'clip_high' in wrong else 'kl_weight'} is"):
        Surrogate(**wrong)  # type: ignore[arg-type]


def test_k3_is_an_unbiased_estimate_of_kl() -> None:
    """Fails with the sign of the gap turned: the mean under the policy would be another number."""
    policy, other = torch.tensor([0.2, 0.5, 0.3]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    expected = (policy.exp() * (policy - other)).sum()
    assert torch.allclose((policy.exp() * k3(policy, other)).sum(), expected, atol=1e-6)
    assert bool((k3(policy, other) >= 0).all())


def test_without_a_reference_it_is_kl_of_old_to_policy() -> None:
    """The direction PromptLoop prints, over actions drawn from the old policy. Fails when it is turned."""
    rng = torch.Generator().manual_seed(3)
    now, old = (torch.randn(6, generator=rng).log_softmax(-1) for _ in range(2))
    settings = Surrogate(kl_weight=1.0, per="constant", longest=1)
    loss, metrics = policy_gradient(
        now[:, None], torch.zeros(6), torch.ones(6, 1, dtype=torch.bool), settings, old=old[:, None]
    )
    each = (now - old).exp() - (now - old) - 1
    assert torch.allclose(loss * 6, each.sum(), atol=1e-6)
    assert torch.allclose((old.exp() * each).sum(), (old.exp() * (old - now)).sum(), atol=1e-6)
    assert torch.allclose(metrics["kl"], each.sum(), atol=1e-6)

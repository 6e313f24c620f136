"""Mllm(fixed_length=True): drafts of one length, for timings that can be compared."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptloop.policies import Mllm, Request

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import shapes

TOKENS = 7


@pytest.fixture(scope="module")
def policy() -> Mllm:
    return shapes.policy(shapes.TINY, "cpu", torch.float32, TOKENS)


def requests() -> list[Request]:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = (Request("a be", text, picture, when) for text, when in (("a bi", 0.5), ("a bu", 0.7)))
    return [Request("a ba", "a ba"), first, second]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_draft_has_as_many_tokens_and_ends_with_the_last(policy: Mllm, temperature: float) -> None:
    """Even where the network would end at once. Fails if an end is allowed earlier, or not forced at last."""
    eager = replace(policy, temperature=temperature)
    end = policy.processor.tokenizer.eos_token_id
    bias = torch.zeros(shapes.TINY.language["vocab_size"])
    bias[end] = 20.0
    hook = policy.network.lm_head.register_forward_hook(lambda _, __, logits: logits + bias)
    drafts = eager.write(requests(), [1, 2, 3])
    hook.remove()
    for draft in drafts:
        assert len(draft.tokens) == TOKENS and (draft.tokens == end).nonzero().tolist() == [[TOKENS - 1]]
        assert not draft.refused and len(draft.answer.split()) == TOKENS - 1
    short = replace(eager, max_new_tokens=1).write(requests(), [1, 2, 3])
    assert [len(draft.tokens) for draft in short] == [1, 1, 1]


def test_log_probs_are_of_the_distribution_drawn_from(policy: Mllm) -> None:
    """Fails if `log_prob` forbids an end where `write` does not, or gives the forced end a probability."""
    drafts = policy.write(requests(), [1, 2, 3])
    with torch.no_grad():
        again, mask = policy.log_prob(drafts)
    told = torch.stack([draft.log_probs for draft in drafts])
    assert bool(mask.all()) and float((again - told).abs().max()) < 1e-5
    assert bool((told[:, -1] == 0).all()) and bool((told[:, :-1] < 0).all())


def test_a_draft_does_not_depend_on_its_batch(policy: Mllm) -> None:
    together = policy.write(requests(), [1, 2, 3])
    alone = [policy.write([request], [seed])[0] for request, seed in zip(requests(), [1, 2, 3], strict=True)]
    assert [draft.answer for draft in together] == [draft.answer for draft in alone]

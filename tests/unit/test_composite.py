"""Weighted rewards and the judge."""

import re
from pathlib import Path

import pytest
import tiny_vlm
import torch
from tiny_reward import brightness
from torch import Tensor

from promptloop.recipes.rewards import reward_named
from promptloop.rewards import Weighted
from promptloop.rewards.composite import scored_by_term
from promptloop.rewards.judge import Judge, asked, pictures


def redness(images: Tensor, queries: list[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


def test_a_weighted_sum_and_its_terms() -> None:
    """RePrompt's algebra: IR 1.2 and g 8 give 0.6, up to its constant. Fails when a weight is dropped."""
    images = torch.rand(3, 3, 8, 8)
    both = Weighted({"bright": (0.25, brightness), "red": (-2.0, redness)})
    total, terms = scored_by_term(both, images, ["a"] * 3)
    assert torch.allclose(total, 0.25 * brightness(images, []) - 2 * redness(images, []))
    assert torch.equal(terms["red"], redness(images, [])) and torch.equal(both(images, ["a"] * 3), total)
    written = reward_named("0.25*tiny_reward:brightness + test_composite:redness")
    assert [weight for weight, _ in written.terms.values()] == [0.25, 1.0]
    known = {"ir": (0.25, lambda i, q: torch.tensor([1.2])), "judge": (1.0, lambda i, q: torch.tensor([0.8]))}
    assert float(Weighted(known)(images[:1], ["a"])) - 0.5 == pytest.approx(0.5 * 1.2 / 2 + 0.5 * (8 - 5) / 5)
    with pytest.raises(ValueError, match="is nan"):
        scored_by_term(reward_named("tiny_reward:broken + 1*oracle"), images, ["a red star"] * 3)


@pytest.mark.parametrize(
    ("said", "weights"),
    [
        ("1e-3*oracle", [1e-3]),
        ("2.*oracle", [2.0]),
        ("+.5 * oracle + -1.5E1*preference", [0.5, -15.0]),
        ("0.5*oracle - 1*preference", "'0.5*oracle - 1*preference', which is not WEIGHT*NAME"),
        ("2x*oracle", "'2x*oracle', which is not"),
        ("2**oracle + preference", "'2**oracle', which is not"),
        ("1*", "'1*', which is not"),
        ("oracle +  + preference", "'', which is not"),
    ],
)
def test_a_sum_is_read_or_refused(said: str, weights: list[float] | str) -> None:
    """Fails if a term that cannot be read is asked for as a sum again, without end."""
    if isinstance(weights, str):
        with pytest.raises(ValueError, match=re.escape(weights)):
            reward_named(said)
    else:
        assert [weight for weight, _ in reward_named(said).terms.values()] == weights


def test_the_judge_says_what_the_chat_model_says(tmp_path: Path) -> None:
    """Against one forward pass an image, written out. Fails when padding is read or yes and no swap."""
    judge = Judge.load(str(tiny_vlm.build("qwen2_5_vl", tmp_path)))
    images, queries = torch.rand(3, 3, 32, 32), ["a star", "two blue squares", "a"]
    found, words = judge(images, queries), judge.processor.tokenizer
    ids = [
        [words(w, add_special_tokens=False).input_ids[0] for w in ws] for ws in (("Yes", "yes"), ("No", "no"))
    ]
    for k, query in enumerate(queries):
        text = judge.processor.apply_chat_template(asked(query), add_generation_prompt=True)
        inputs = judge.processor(text=[text], images=pictures(images[k : k + 1], 448), return_tensors="pt")
        p = judge.network(**inputs).logits[0, -1].softmax(-1)
        yes, no = (float(p[row].sum()) for row in ids)
        assert float(found[k]) == pytest.approx(yes / (yes + no), abs=1e-5)
    assert pictures(torch.rand(1, 3, 20, 40), 20)[0].size == (20, 10)

"""Rating judges and UnifiedReward: against forward passes written out, answers read or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_vlm
import torch

from promptloop.recipes.rewards import reward_named
from promptloop.rewards.chat import Chat, pictures, turn
from promptloop.rewards.contract import scored
from promptloop.rewards.rating import RATE, Rating, Spoken, axes, final_score, rating

IMAGES, QUERIES = (
    torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4)),
    ["a", "two red stars", "b"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.build("qwen2_5_vl", tmp_path_factory.mktemp("rating"))


def test_the_rating_is_the_expected_number(folder: Path) -> None:
    """Against one softmax an image and another after "1", written out. Fails if 10 is left out or counted as
    1, padding is read, or the batch changes an image's rating.
    """
    chat = Chat.load(str(folder), "rating")
    found, words = Rating(chat, least=0.0)(IMAGES, QUERIES), chat.processor.tokenizer
    digit = [words(str(k), add_special_tokens=False).input_ids[0] for k in range(10)]
    assert len(words("10", add_special_tokens=False).input_ids) == 2
    for k, query in enumerate(QUERIES):
        text = chat.processor.apply_chat_template(turn(RATE.format(query=query)), add_generation_prompt=True)
        said = [text, text + "1"]
        rows = [
            chat.processor(text=[t], images=pictures(IMAGES[k : k + 1], 448), return_tensors="pt")
            for t in said
        ]
        p, after = (chat.network(**row).logits[0, -1].softmax(-1) for row in rows)
        share = [float(p[d]) for d in digit] + [float(p[digit[1]] * after[digit[0]])]
        share[1] -= share[10]
        expected = sum(n * x for n, x in enumerate(share)) / sum(share)
        assert 0 < float(found[k]) < 10 and float(found[k]) == pytest.approx(expected, abs=1e-4)
    alone = Rating(chat, least=0.0)(IMAGES[1:2], QUERIES[1:2])
    assert float(alone[0]) == pytest.approx(float(found[1]), abs=1e-4)


def test_a_model_that_does_not_answer_with_a_number_is_refused(folder: Path) -> None:
    """Fails if the few numbers that are there are taken for its opinion."""
    reward = Rating(Chat.load(str(folder), "rating"), least=0.9)
    with pytest.raises(
        ValueError, match=r"reward rating of image 0 \('a'\) failed: a number has probability 0"
    ):
        scored(reward, IMAGES, QUERIES)
    with pytest.raises(
        ValueError, match="reward rating needs a chat model: give rating:FOLDER_OR_ID, or a server"
    ):
        reward_named("rating")
    with pytest.raises(ValueError, match="cannot be loaded as a chat model that sees"):
        reward_named(f"unifiedreward:{folder.parent}")


def test_an_answer_in_words_is_greedy_and_whole(folder: Path) -> None:
    """Against the likeliest token, one by one. Fails if the folder's sampling is used, or half an answer."""
    chat = Chat.load(str(folder), "x")
    text = chat.processor.apply_chat_template(turn("b"), add_generation_prompt=True)
    inputs = chat.processor(text=[text], images=pictures(IMAGES[:1], 448), return_tensors="pt")
    end, spoken = chat.processor.tokenizer.eos_token_id, []
    for _ in range(6):
        logits = chat.next_logits(IMAGES[:1], ["b"], spoken)[0]
        spoken.append(int(logits.argmax()))
    assert spoken[0] == int(chat.network(**inputs).logits[0, -1].argmax()) and end not in spoken
    words = chat.processor.tokenizer.decode(spoken).strip()
    with pytest.raises(
        ValueError, match=r"reward x of image 0 \('q'\) failed: its answer has no end within 6"
    ):
        chat.answers("x", IMAGES[:1], ["q"], "b", 6)
    chat.network.generation_config.eos_token_id = spoken[5]  # now it ends there
    first = spoken.index(spoken[5])
    (said,) = chat.answers("x", IMAGES[:1], ["q"], "b", 6)
    assert said == chat.processor.tokenizer.decode(spoken[:first], skip_special_tokens=True).strip() != words
    with pytest.raises(ValueError, match=r"reward x of image 0 \('q'\) failed: its answer has no number"):
        Spoken(chat, "x", "b", final_score, tokens=6)(IMAGES[:1], ["q"])


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("8", 8.0),
        ("8.5/10", 8.5),
        ("**Rating:** 7 out of 10.", 7.0),
        ("10 / 10", 10.0),
        ("0", 0.0),
        ("I give 6. So the rating is 6.", 6.0),
        ("<think>is it 3 or 4?</think> 4", 4.0),
        ("11", "is 11, which is not from 0 to 10"),
        ("-1", "is -1, which"),
        ("7-8", "has 2 numbers"),
        ("5/5", "another scale than 0 to 10"),
        ("three", "has no number"),
        ("", "has no number"),
        ("2 dogs, so 9", "has 2 numbers"),
    ],
)
def test_a_rating_is_read_or_refused(answer: str, value: float | str) -> None:
    """Fails if the first number that comes is taken, or a missing one becomes 0."""
    if isinstance(value, float):
        assert rating(answer) == value
    else:
        with pytest.raises(ValueError, match=value):
            rating(answer)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("dog (animal): 1\nred (colour): 0\nFinal Score: 3", 3.0),
        ("**Final Score:** 4.25.", 4.25),
        ("Final Score (1-5): 2", 2.0),
        ("final score: 5/5", 5.0),
        ("Final Score: [4]", 4.0),
        ("dog (animal): 1", "has no number"),
        ("Final Score: 0", "is 0, which is not from 1 to 5"),
        ("Final Score: 8/10", "has no number"),
        ("Final Score: 3 - 4", "has no number"),
        ("Final Score: 3\nFinal Score: 4", "has 2 numbers"),
    ],
)
def test_unifiedrewards_score_is_read_or_refused(answer: str, value: float | str) -> None:
    """Fails if an element's 0 or 1, or the scale that it names, is taken for the score."""
    if isinstance(value, float):
        assert final_score(answer) == value
    else:
        with pytest.raises(ValueError, match=value):
            final_score(answer)


def test_the_axes_of_version_one_and_a_half() -> None:
    said = "Word-wise Scores: [['a', 1.2]]\n\nAlignment Score (1-5): 3.5\nCoherence Score (1-5): 4\n"
    said += "Style Score (1-5): "
    assert axes(said + "3") == pytest.approx(3.5)
    with pytest.raises(ValueError, match="no number"):
        axes(said)

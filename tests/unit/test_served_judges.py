"""Judges behind a server: a real one on this machine, which looks at the image that it was sent."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_server import Chat, Reply, Scripted, raw, say, serving, status
from torch import Tensor

from promptloop.recipes.rewards import reward_named
from promptloop.rewards.contract import scored
from promptloop.rewards.rating import RATE, Spoken, rating
from promptloop.rewards.served_chat import ServedChat, ServedJudge
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import describe, parse
from promptloop.world.lessons import user_says
from promptloop.world.oracle import grade
from promptloop.world.scene import random_scene


def asking(server: Scripted, **settings: Any) -> ServedChat:
    return ServedChat(server.url, "seer", **{"timeout": 5.0, "backoff": 0.01, "retries": 1} | settings)


def graded(sent: Any) -> float:
    """The oracle's grade of the image in a request, for the query that its question names."""
    image, text = sent["messages"][0]["content"]
    shown = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2])))
    query = re.search(r'"(.*?)"', text["text"])
    assert query is not None
    return float(grade(np.asarray(shown)[None], [parse(query[1])]).soft[0])


def likely(chances: Callable[[Any], dict[str, float]]) -> Reply:
    """An answer of one token, with the probabilities of some."""

    def reply(chat: Chat) -> None:
        p = chances(chat.sent)
        top = [{"token": word, "logprob": float(np.log(x))} for word, x in p.items()]
        choice = {"message": {"content": max(p, key=lambda w: p[w])}, "finish_reason": "length",
                  "logprobs": {"content": [{"token": "", "logprob": 0.0, "top_logprobs": top}]}}  # fmt: skip
        chat.write(json.dumps({"choices": [choice]}).encode())

    return reply


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor, list[str]]:
    """Scenes, each with another's place taken by it, and what was asked for."""
    rng = random.Random(11)
    scenes = [random_scene(rng) for _ in range(6)]
    queries = [user_says(describe(scene, rng, dense=1.0), rng) for scene in scenes]
    images = pixels(scenes) * 0.5 + 0.5
    return images, images.roll(1, 0), queries


def test_gold_above_corrupted_through_a_server(drawn: tuple[Tensor, Tensor, list[str]]) -> None:
    """The server grades what it sees. Fails if images or queries change places or a pixel on the way, or an
    answer is read for another image.
    """
    images, others, queries = drawn
    rate = say(lambda sent: f"{round(10 * graded(sent))}/10")
    odds = likely(lambda sent: {" Yes": 0.02 + 0.5 * graded(sent), "No": 0.2, "yes": 0.1, "The": 0.1})
    with serving(rate) as server:
        reward = Spoken(asking(server), "rating", RATE, rating)
        gold, bad = scored(reward, images, queries), scored(reward, others, queries)
        assert torch.equal(gold, torch.full((6,), 10.0)) and (gold > bad).all()
        each = grade(others, [parse(query) for query in queries]).soft
        assert bad.tolist() == [round(10 * float(score)) for score in each] and len(set(bad.tolist())) > 2
        body = server.seen[0][2]
        assert (body["model"], body["temperature"], body["stream"]) == ("seer", 0.0, False)
        assert torch.equal(reward(images[3:4], queries[3:4]), gold[3:4])
    with serving(odds) as server:
        reward = ServedJudge(asking(server))
        gold, bad = scored(reward, images, queries), scored(reward, others, queries)
        assert gold.tolist() == pytest.approx([0.62 / 0.82] * 6) and (gold > bad).all()
        assert server.seen[0][2]["logprobs"] is True and server.seen[0][2]["max_tokens"] == 1


def test_judges_are_named_with_their_server() -> None:
    with serving(say("Two elements are there.\nFinal Score: 4")) as server:
        reward = reward_named(f"0.5*unifiedreward:{server.url}#seer + 1*rating:{server.url}#other")
        one, other = (term for _, term in reward.terms.values())
        assert (one.chat.served, other.chat.served, other.name) == ("seer", "other", "rating")
        assert one(torch.rand(1, 3, 8, 8), ["a dog"]).tolist() == [4.0]
        assert "Text Caption: [a dog]" in server.seen[0][2]["messages"][0]["content"][1]["text"]
        assert isinstance(reward_named(f"judge:{server.url}#seer"), ServedJudge)
    with pytest.raises(ValueError, match="which model of"):
        reward_named(f"rating:{server.url}")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (say("I cannot rate images."), "its answer has no number"),
        (say("7", "length"), r"its answer was cut \(length\) after '7'"),
        (say(None), "answered without words"),
        (raw(b'{"choices": []}'), r"answered without choices\[0\]"),
        (status(400, "no image input"), "status 400"),
        (status(500), "no usable answer in 2 tries"),
    ],
    ids=["chatter", "cut", "null", "empty", "400", "500"],
)
def test_a_failed_answer_names_reward_image_and_query(bad: Reply, why: str) -> None:
    """The second of two. Fails if it becomes 0, or the error is the first image's."""

    def reply(chat: Chat) -> None:
        second = "a cat" in json.dumps(chat.sent)
        (bad if second else say("9"))(chat)

    with serving(reply) as server:
        reward = Spoken(asking(server, concurrency=1), "rating", RATE, rating)
        with pytest.raises(
            (ValueError, ConnectionError), match=rf"reward rating of image 1 \('a cat'\) failed: .*{why}"
        ):
            scored(reward, torch.rand(2, 3, 8, 8), ["a dog", "a cat"])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (say("Yes"), r"reward judge of image 0 \('a'\) failed: .*no log-probabilities"),
        (likely(lambda _: {"The": 0.9, "It": 0.1}), "neither with yes nor no, but likeliest with 'The'"),
    ],
    ids=["no probabilities", "neither"],
)
def test_a_judge_needs_probabilities_of_yes_or_no(answer: Reply, why: str) -> None:
    """Fails if a server that gives none, or a model that says something else, is taken for no."""
    with serving(answer, likely(lambda _: {"No": 0.9, "It": 0.1})) as server:
        judge = ServedJudge(asking(server))
        with pytest.raises(ValueError, match=why):
            judge(torch.rand(1, 3, 8, 8), ["a"])
        assert judge(torch.rand(1, 3, 8, 8), ["a"]).tolist() == [0.0]

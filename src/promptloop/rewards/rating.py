"""A chat model's rating from 0 to 10, the "MLLM score" of papers, and UnifiedReward's answers.

A model in this process is not asked for its likeliest number but for the expected one over its numbers'
probabilities (as G-Eval, Liu et al., arXiv 2303.16634): images of one group then seldom tie, nothing has to
be parsed, and nothing is drawn. A server gives words, so that its number is read from them: mostly a whole
one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import final

import torch
from torch import Tensor

from promptloop.names import is_server
from promptloop.rewards.chat import Answers, Chat
from promptloop.rewards.contract import Reward
from promptloop.rewards.rows import failed, one_by_one
from promptloop.rewards.served_chat import ServedChat

RATE = (
    'How well does this image show "{query}"? First count what was asked for and is there, then whether it '
    "looks real. Answer with one whole number from 0 (not at all) to 10 (exactly), and nothing else."
)
UNIFIED = (  # its two criteria and the words that it answers with; the wording is ours
    "Here are a text caption and an image that was generated from it. Judge how well the image is aligned "
    "with the caption (things, their attributes and relations) and its overall quality (clarity, detail, "
    "colour, beauty). Say of each element of the caption whether it is in the image, then give one score "
    "from 1 to 5 after 'Final Score:'.\nText Caption: [{query}]"
)
NUMBER = r"(?<![\w.,])-?\d+(?:\.\d+)?(?!\w)"
OF_FIVE = rf"\s*(?:\(1-5\))?\W*?:\W*?({NUMBER})(?!\s*[-–/]\s*(?!5\b)\d)"  # after a score's name; no range
AXES = ("Alignment", "Coherence", "Style")


@final
class Rating:
    """Images [B, 3, H, W] in [0, 1] to the expected rating [B], 0 to 10, of a chat model in this process.

    The eleven numbers' probabilities are exact: "10" that is two tokens is P("1") P("0" after "1"), which is
    one more forward pass. ValueError where all eleven together are less probable than `least`: the model does
    not answer with a number, and what it would say is not made up.
    """

    def __init__(self, chat: Chat, *, question: str = RATE, least: float = 0.1) -> None:
        self.chat, self.question, self.least = chat, question, least
        numbers = [chat.ids(str(k)) for k in range(11)]
        alike = (column[0] for column in takewhile(lambda c: len(set(c)) == 1, zip(*numbers, strict=False)))
        self.begun = list(alike)  # of every number: a blank, in some tokenizers
        rest = [ids[len(self.begun) :] for ids in numbers]
        firsts = [ids[0] for ids in rest[:10] if len(ids) == 1]
        self.single = len(rest[10]) == 1
        if len(set(firsts)) < 10 or not (self.single or rest[10] == [firsts[1], firsts[0]]):
            raise ValueError(
                "the rating's tokenizer does not write 0 to 10 digit by digit; give another model"
            )
        self.tokens = [*firsts, rest[10][0]]

    @staticmethod
    def load(where: str | None = None, *, device: str | torch.device = "cpu") -> Reward:
        """The chat model in a folder or of a hub id, or the one at a server, "http://HOST:PORT/v1#MODEL"."""
        if where is not None and is_server(where):
            return Spoken(ServedChat.named(where), "rating", RATE, rating)
        return Rating(Chat.load(where, "rating", device=device))

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        questions = [self.question.format(query=query) for query in queries]
        first = self.chat.next_logits(images, questions, self.begun).softmax(1)
        share = first[:, self.tokens]
        if not self.single:
            after = self.chat.next_logits(images, questions, [*self.begun, self.tokens[1]]).softmax(1)
            ten = share[:, 1] * after[:, self.tokens[0]]
            share = torch.cat([share[:, :1], (share[:, 1] - ten)[:, None], share[:, 2:10], ten[:, None]], 1)
        mass = share.sum(1)
        if not (mass >= self.least).all():
            k = int((mass >= self.least).int().argmin())
            word = self.chat.processor.tokenizer.decode([int(first[k].argmax())])
            why = f"a number has probability {float(mass[k]):.2g} only; likeliest it begins with {word!r}"
            raise failed("rating", k, queries[k], ValueError(why))
        return (share * torch.arange(11, device=share.device)).sum(1) / mass


@final
@dataclass(frozen=True, eq=False)
class Spoken:
    """Images to the number [B] that `read` finds in what `chat` answers to `question` about the {query}.

    ValueError naming the image and its query where an answer has none or two, or no end within `tokens`.
    """

    chat: Answers
    name: str
    question: str
    read: Callable[[str], float]
    tokens: int = 32

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        said = self.chat.answers(self.name, images, queries, self.question, self.tokens)
        return one_by_one(self.name, lambda k: self.read(said[k]), queries)


@final
class Unified:
    """UnifiedReward (Wang et al., arXiv 2503.05236): a chat model that explains, then scores, 1 to 5."""

    @staticmethod
    def load(where: str | None = None, *, device: str | torch.device = "cpu") -> Spoken:
        """A folder or hub id in transformers' format (the -qwen- ones), or one at a server."""
        served = where is not None and is_server(where)
        chat = ServedChat.named(str(where)) if served else Chat.load(where, "unifiedreward", device=device)
        return Spoken(chat, "unifiedreward", UNIFIED, final_score, tokens=1024)


def rating(answer: str) -> float:
    """The one number from 0 to 10 in an answer ("8", "8.5/10", "Rating: 8 out of 10"); ValueError else."""
    text = re.sub(r"(?s)^.*</think>", "", answer)
    text = re.sub(r"(/|\bout of)\s*10\b(?!\.\d)", "", text)
    if re.search(r"\d\s*(/|out of)\s*\d", text):
        raise ValueError(f"its answer is on another scale than 0 to 10: {answer[-200:]!r}")
    return only(re.findall(NUMBER, text), answer, 0, 10)


def final_score(answer: str) -> float:
    """What stands after "Final Score:" in an answer, from 1 to 5; ValueError where no number or two do."""
    return only(re.findall(rf"(?i)final score{OF_FIVE}", answer), answer, 1, 5)


def axes(answer: str) -> float:
    """The mean of the three scores from 1 to 5 that version 1.5 gives: alignment, coherence, style."""
    found = {axis: re.findall(rf"(?i){axis} score{OF_FIVE}", answer) for axis in AXES}
    return sum(only(numbers, answer, 1, 5) for numbers in found.values()) / len(AXES)


def only(numbers: Sequence[str], answer: str, low: float, high: float) -> float:
    """The one number that was found, from low to high."""
    shown = " ".join(answer.split())[-200:]
    if len({float(number) for number in numbers}) != 1:
        count = "no number" if not numbers else f"{len(numbers)} numbers"
        raise ValueError(f"its answer has {count} where one was asked for: {shown!r}")
    if not low <= (value := float(numbers[0])) <= high:
        raise ValueError(f"its answer is {value:g}, which is not from {low:g} to {high:g}: {shown!r}")
    return value

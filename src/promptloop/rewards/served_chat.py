"""A chat model that sees, behind any OpenAI-compatible server (vLLM, SGLang, llama.cpp, ...), as a judge."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from PIL import Image
from torch import Tensor

from promptloop.policies.endpoint import CUT
from promptloop.policies.pictures import url_of
from promptloop.policies.server import Server, at_once
from promptloop.rewards.chat import pictures
from promptloop.rewards.judge import NO, QUESTION, YES
from promptloop.rewards.rows import failed

LIKELIEST = 20  # log-probabilities asked for at a place: as many as servers give


@final
@dataclass(frozen=True, eq=False)
class ServedChat:
    """Asks the model `served` at `url` ("http://127.0.0.1:8000/v1"), `concurrency` images at a time.

    Images are sent as PNG, at most `size` wide and high. Answers are the likeliest (temperature 0).
    `timeout`, `retries`, `backoff` and `key_variable` are `policies.server.Server`'s; `extra` are more fields
    of the request, as this server knows them.
    """

    url: str
    served: str
    size: int = 448
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 3
    backoff: float = 1.0
    key_variable: str = "PROMPTLOOP_API_KEY"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._server  # noqa: B018  (its settings must hold)
        if not self.served.strip():
            raise ValueError(f"which model of {self.url}? write http://HOST:PORT/v1#MODEL")
        for name in ("size", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @staticmethod
    def named(name: str, **settings: Any) -> ServedChat:
        """From "http://HOST:PORT/v1#MODEL"."""
        url, _, served = name.partition("#")
        return ServedChat(url, served, **settings)

    def answers(
        self, reward: str, images: Tensor, queries: Sequence[str], question: str, tokens: int
    ) -> list[str]:
        """`chat.Answers.answers`."""
        choices = self.choices(reward, images, queries, question, {"max_tokens": tokens})
        found = []
        for k, choice in enumerate(choices):
            said = (choice.get("message") or {}).get("content")
            if not isinstance(said, str):
                what = self._server.quoted(str(choice))
                raise failed(reward, k, queries[k], ValueError(f"{self.url} answered without words: {what}"))
            if choice.get("finish_reason") in CUT:
                what = self._server.quoted(said)
                why = ValueError(f"its answer was cut ({choice['finish_reason']}) after {what!r}")
                raise failed(reward, k, queries[k], why)
            found.append(said.strip())
        return found

    def choices(
        self, reward: str, images: Tensor, queries: Sequence[str], question: str, more: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """choices[0] of what the server answers about each image, in their order."""
        if len(images) != len(queries):
            raise ValueError(f"{len(queries)} queries for {len(images)} images; give one each")

        def ask(k: int, picture: Image.Image, query: str, stop: threading.Event) -> dict[str, Any]:
            image = {"type": "image_url", "image_url": {"url": url_of(picture)}}
            text = {"type": "text", "text": question.format(query=query)}
            body = {
                "model": self.served,
                "messages": [{"role": "user", "content": [image, text]}],
                "temperature": 0.0,
                "seed": 0,
                "stream": False,
            }
            try:
                answered = self._server.post("chat/completions", {**body, **more, **self.extra}, stop)
                choice = answered["choices"][0] if isinstance(answered, dict) else None
            except (KeyError, IndexError, TypeError):
                choice = None
            except (ValueError, ConnectionError) as error:
                raise failed(reward, k, query, error) from error
            if not isinstance(choice, dict):
                what = f"{self.url} answered without choices[0]; is it an OpenAI-compatible chat server?"
                raise failed(reward, k, query, ValueError(what))
            return choice

        rows = zip(range(len(queries)), pictures(images, self.size), queries, strict=True)
        return at_once(ask, list(rows), self.concurrency)

    @property
    def _server(self) -> Server:
        return Server(self.url, self.timeout, self.retries, self.backoff, self.key_variable)


@final
@dataclass(frozen=True, eq=False)
class ServedJudge:
    """`judge.Judge` by a server: P(yes) / (P(yes) + P(no)) [B] among the 20 likeliest first tokens.

    One of the two words that is not among them counts as impossible; neither is an error.
    """

    chat: ServedChat
    __name__: ClassVar[str] = "judge"

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        more = {"max_tokens": 1, "logprobs": True, "top_logprobs": LIKELIEST}
        choices = self.chat.choices("judge", images, queries, QUESTION, more)
        values = []
        for k, choice in enumerate(choices):
            try:
                values.append(probability(choice))
            except ValueError as error:
                raise failed("judge", k, queries[k], error) from error
        return torch.tensor(values, dtype=torch.float32)


def probability(choice: Mapping[str, Any]) -> float:
    """P(yes) / (P(yes) + P(no)) of a choice with log-probabilities; ValueError where they say neither."""
    try:
        first = choice["logprobs"]["content"][0]["top_logprobs"]
        likely = [(str(row["token"]).strip(), math.exp(float(row["logprob"]))) for row in first]
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(
            "the server gave no log-probabilities (choices[0].logprobs); serve the model by vLLM or SGLang, "
            "or use rating, which reads words"
        ) from None
    yes, no = (sum(p for token, p in likely if token in words) for words in (YES, NO))
    if not yes + no > 0:
        likeliest = max(likely, key=lambda row: row[1], default=("", 0.0))[0]
        raise ValueError(f"its answer begins neither with yes nor no, but likeliest with {likeliest!r}")
    return yes / (yes + no)

"""A chat model behind any OpenAI-compatible server (vLLM, SGLang, llama.cpp, ...) as the policy.

The message and how an answer is read are `message.py`'s, as for a chat model in this process (`mllm.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from promptloop.policies.contract import LIKELIEST, Draft, Policy, Request
from promptloop.policies.message import messages, read
from promptloop.policies.pictures import data_url
from promptloop.policies.server import Server, at_once

CUT = ("length", "max_tokens", "abort", "content_filter")  # finish_reason of half an answer
SEEDS = 2**31  # servers keep a seed in 32 bits, some of them signed


@final
@dataclass(frozen=True, eq=False)
class Endpoint(Policy):
    """Asks the model `served` at `url` ("http://127.0.0.1:8000/v1"), `concurrency` requests at a time.

    `temperature`, `max_new_tokens` and a seed for each draft are sent; `extra` are more fields of the
    request, as this server knows them ({"chat_template_kwargs": {"enable_thinking": False}}). An answer that
    was cut is refused as overlong. `timeout`, `retries`, `backoff` and `key_variable` are `server.Server`'s:
    a draft that cannot be had is an error, never the query in its place. Drafts have no tokens, so no
    log-probs: a server's model is not trained.
    """

    url: str
    served: str
    temperature: float = 1.0
    max_new_tokens: int = 96
    image_size: int | None = None
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
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}; give 0 (the likeliest) or a positive number"
            )
        for name in ("max_new_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; give pixels, from 1")
        taken = sorted(set(self.extra) & set(self._body(Request("", ""), 0)))
        if taken:
            raise ValueError(
                f"extra cannot replace {', '.join(taken)}; these have settings or are the message's"
            )

    @staticmethod
    def named(name: str, **settings: Any) -> Endpoint:
        """From "http://HOST:PORT/v1#MODEL", as the command line's --policy takes it."""
        url, _, served = name.partition("#")
        return Endpoint(url, served, **settings)

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        """One draft per request, in their order. ConnectionError or ValueError: one of them cannot be had."""
        if len(seeds) != len(requests):
            raise ValueError(f"{len(requests)} requests but {len(seeds)} seeds; give one seed per request")
        return at_once(self._draft, [*zip(requests, seeds, strict=True)], self.concurrency)

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        """ValueError: a server gives text."""
        raise ValueError(
            f"the drafts of {self.url} have no log-probs, so it cannot be trained; train a chat model of "
            "your own (promptloop train) and serve it afterwards"
        )

    def _draft(self, request: Request, seed: int, stop: threading.Event) -> Draft:
        server = self._server
        answered = server.post("chat/completions", {**self._body(request, seed), **self.extra}, stop)
        try:
            choice = answered["choices"][0]
            content, ended = choice["message"].get("content", ""), choice.get("finish_reason") not in CUT
            whole = isinstance(content, str | None)
        except (KeyError, IndexError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise ValueError(
                f"{self.url} answered without choices[0].message.content; is it an OpenAI-compatible chat "
                f"server? It said {server.quoted(str(answered))!r}"
            )
        text, kept = read(request, content or "", ended=ended)
        return Draft(request, text, answer=content or "", kept=kept)

    def _body(self, request: Request, seed: int) -> dict[str, Any]:
        likeliest = seed == LIKELIEST
        return {
            "model": self.served,
            "messages": [{**message, "content": _content(message, request)} for message in messages(request)],
            "max_tokens": self.max_new_tokens,
            "temperature": 0.0 if likeliest else self.temperature,
            "top_p": 1.0,  # else some servers take what the model's folder proposes
            "seed": 0 if likeliest else seed % SEEDS,
            "stream": False,
        }

    @property
    def _server(self) -> Server:
        return Server(self.url, self.timeout, self.retries, self.backoff, self.key_variable)


def _content(message: Mapping[str, Any], request: Request) -> str | list[dict[str, Any]]:
    """The message's parts in OpenAI's form; text alone as a plain string, which all servers read."""
    parts = message["content"]
    if len(parts) == 1:
        return str(parts[0]["text"])
    image = {"type": "image_url", "image_url": {"url": data_url(request)}}
    return [image if part["type"] == "image" else part for part in parts]

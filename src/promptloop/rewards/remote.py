"""A reward that another process computes, behind HTTP (`promptloop serve-rewards`)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from promptloop.names import nearest
from promptloop.policies.server import Refused, Server, at_once
from promptloop.rewards import wire
from promptloop.rewards.failed import RewardFailed


@final
@dataclass(frozen=True)
class RemoteReward:
    """The reward `name` of the server at `url` ("http://127.0.0.1:8100"), on its raw scale; no gradients.

    Images go as float32, or as 8-bit numbers where that is exact, `batch` in a request and `concurrency`
    requests at a time, so the values are those that the reward would give here for batches of `batch`. A
    server that is busy is waited for, `patience` seconds a request; `timeout`, `retries`, `backoff` and
    `key_variable` are `policies.server.Server`'s. RewardFailed, naming reward, image and query, for what the
    reward cannot value; ConnectionError where the server cannot be reached. Neither becomes a number.
    """

    url: str
    name: str
    batch: int = 16
    concurrency: int = 4
    timeout: float = 300.0
    retries: int = 3
    backoff: float = 1.0
    patience: float = 600.0
    key_variable: str = "PROMPTLOOP_API_KEY"
    stochastic: bool = False
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._server  # noqa: B018  (its settings must hold)
        if not self.name:
            raise ValueError(f"which reward of {self.url}? write http://HOST:PORT#NAME")
        for name in ("batch", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.patience < float("inf"):
            raise ValueError(f"patience is {self.patience}; give seconds, from 0")

    @property
    def __name__(self) -> str:
        return f"{self.url}#{self.name}"

    @staticmethod
    def named(said: str, **settings: Any) -> RemoteReward:
        """From "http://HOST:PORT#NAME"; the server is asked for it: ValueError, with the nearest, where it
        has no such reward, ConnectionError where there is none.
        """
        url, _, name = said.partition("#")
        reward = RemoteReward(url.rstrip("/"), name, **settings)
        served = reward._said(reward._server.post, "rewards", {})
        try:
            there = dict(served["rewards"])
            if name in there:
                return RemoteReward(
                    reward.url, name, **{"stochastic": bool(there[name].get("stochastic")), **settings}
                )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"{url} is no server of rewards; start one: promptloop serve-rewards") from error
        raise ValueError(f"no reward {name!r} at {url}; {nearest(name, there)}")

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        if len(images) != len(queries):
            raise ValueError(f"{len(queries)} queries for {len(images)} images; give one each")
        pixels = images.detach().float().cpu().numpy()
        parts = [(pixels, list(queries), k) for k in range(0, len(queries), self.batch)]
        found = at_once(self._part, parts, self.concurrency)
        return torch.tensor([value for part in found for value in part], dtype=torch.float32)

    def _part(self, pixels: np.ndarray, queries: list[str], first: int, stop: threading.Event) -> list[float]:
        """The values of the images from `first` on, at most `batch`."""
        own = slice(first, first + self.batch)
        body = wire.body(self.name, pixels[own], queries[own], 0.9 * self.timeout)
        try:
            answer = self._said(self._server.post, "score", body, stop)
        except RewardFailed as error:
            raise error.at(first + error.index) from error
        except ConnectionError as error:
            raise ConnectionError(
                f"reward {self.name} of image {first} ({queries[first]!r}) and what went with it: {error}"
            ) from error
        values = answer.get("values") if isinstance(answer, dict) else None
        wanted = len(body["prompts"])
        if not isinstance(values, list) or len(values) != wanted or not all(map(is_number, values)):
            raise RewardFailed(
                self.__name__, first, queries[first], f"is not among {wanted} numbers: {values!r:.80}"
            )
        return [float(value) for value in values]

    def _said(self, post: Any, path: str, body: dict[str, Any], *more: Any) -> Any:
        """The answer; where it is a refusal, in the server's own words."""
        try:
            return post(path, body, *more)
        except Refused as error:
            told = wire.failure(error.said)
            index, why = told.get("index"), str(told.get("why") or told.get("message") or error)
            prompts = body.get("prompts", [])
            if isinstance(index, int) and 0 <= index < len(prompts):
                raise RewardFailed(self.__name__, index, prompts[index], why) from error
            less = f"; lower batch (now {self.batch})" if error.status == 413 else ""
            raise ValueError(f"{self.url} refused: {why}{less}") from error

    @property
    def _server(self) -> Server:
        return Server(self.url, self.timeout, self.retries, self.backoff, self.key_variable, self.patience)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

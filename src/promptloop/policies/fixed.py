"""Policies without weights: the identity, a table, a template, or a rule of your own."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from promptloop.policies.contract import Draft, Policy, Request
from promptloop.policies.message import read


class Fixed(Policy):
    """A policy that is a plain function of the request and its draw: no tokens, nothing to train."""

    @abstractmethod
    def answer(self, request: Request, rng: random.Random) -> str:
        """What it says to one request; `rng` is all the randomness it may use."""

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        drafts = []
        for request, seed in zip(requests, seeds, strict=True):
            answer = self.answer(request, random.Random(seed))
            text, kept = read(request, answer)
            drafts.append(Draft(request, text, answer=answer, kept=kept))
        return drafts

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        """Empty [B, 0]: nothing was drawn."""
        return torch.zeros(len(drafts), 0), torch.zeros(len(drafts), 0, dtype=torch.bool)


@final
@dataclass(frozen=True)
class Identity(Fixed):
    """Repeats the prompt in force."""

    def answer(self, request: Request, rng: random.Random) -> str:
        return request.prompt


@final
@dataclass(frozen=True)
class Table(Fixed):
    """Looks the query up: `Table({"a dog": "a photo of a dog"})`. Others keep theirs."""

    prompts: Mapping[str, str] = field(default_factory=dict)

    def answer(self, request: Request, rng: random.Random) -> str:
        return self.prompts.get(request.query, request.prompt)


@final
@dataclass(frozen=True)
class Template(Fixed):
    """Fills `{query}` and `{prompt}`: `Template("a photo of {query}")`."""

    text: str

    def __post_init__(self) -> None:
        try:
            self.text.format(query="", prompt="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"template {self.text!r} may only name {{query}} and {{prompt}} (problem: {error})"
            ) from None

    def answer(self, request: Request, rng: random.Random) -> str:
        return self.text.format(query=request.query, prompt=request.prompt)

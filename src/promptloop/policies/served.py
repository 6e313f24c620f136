"""Drafts drawn by a vLLM server that follows the policy in training: its speed, our weights.

The server speaks vLLM's OpenAI-compatible protocol: chat completions with token ids and log-probabilities
(from 0.10.2 on), and LoRAs loaded while it runs. Its kernels are not ours, so neither are its
log-probabilities; `objectives/mismatch.py` measures and corrects that.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from promptloop.policies.contract import LIKELIEST, Draft, Policy, Request
from promptloop.policies.message import messages
from promptloop.policies.mllm import Mllm
from promptloop.policies.pictures import data_url
from promptloop.policies.server import Refused, Server, at_once

KEY = "VLLM_API_KEY"  # the environment variable that vLLM itself reads its key from
TIMEOUT = 120.0  # seconds: an update's drafts wait for each other there
NEVER = -100.0  # the lowest logit bias the protocol has: the token's probability is multiplied by e^-100
PLAIN = {  # a server takes what a request does not say from the model's generation_config
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "n": 1, "logprobs": True, "top_logprobs": 0, "return_token_ids": True,
    "skip_special_tokens": True,
}  # fmt: skip


def vllm(url: str, **settings: Any) -> Server:
    """vLLM at `url`, which ends in /v1; `settings` are `Server`'s. ValueError for another address."""
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?/v1/?", url):
        raise ValueError(f"the server's address is {url!r}; give one like http://127.0.0.1:8000/v1")
    usual: dict[str, Any] = {"timeout": TIMEOUT, "key_variable": KEY}
    return Server(url, **usual | settings)


@final
class Served(Policy):
    """Writes the drafts of `policy`, in training, on a server that holds its base weights.

    `follow` hands the policy's present LoRA to the server through `folder`, which both must see. Drafts carry
    the server's log-probabilities; `log_prob` is the policy's own. Seeds are the server's to use: it draws
    other drafts than the policy would. It is asked for `concurrency` drafts at a time.

    ConnectionError where no answer comes, ValueError where it is one that cannot be used.
    """

    def __init__(self, policy: Mllm, server: Server, folder: Path, *, concurrency: int = 64) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        if not hasattr(policy.network, "peft_config"):
            raise ValueError("a server follows a policy by its LoRA, and this one has none; train a LoRA")
        self.policy, self.server, self.folder = policy, server, folder
        self.concurrency = concurrency
        self.image_size = policy.image_size
        self._name, self._loads = f"promptloop-{uuid.uuid4().hex[:8]}", 0
        self._serving: str | None = None
        self._compared = False

    def follow(self) -> None:
        """From here on the server writes with the policy's present weights."""
        self._loads += 1
        name = f"{self._name}-{self._loads}"
        self.policy.save(self.folder / name)
        where = str((self.folder / name).resolve())
        self._once("load_lora_adapter", {"lora_name": name, "lora_path": where})
        last, self._serving = self._serving, name
        self._forget(last)

    def close(self) -> None:
        """Takes the LoRA off the server."""
        last, self._serving = self._serving, None
        self._forget(last)

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        if len(seeds) != len(requests):
            raise ValueError(f"{len(requests)} requests but {len(seeds)} seeds; give one seed per request")
        if self._serving is None:
            raise ValueError("the server has no LoRA of this policy yet; call follow() first")
        bodies = [self.body(request, seed) for request, seed in zip(requests, seeds, strict=True)]
        posts = [("chat/completions", body) for body in bodies]
        answers = at_once(self.server.post, posts, self.concurrency)
        return [self._draft(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        """The policy's own, not the server's."""
        return self.policy.log_prob(drafts)

    def body(self, request: Request, seed: int) -> dict[str, Any]:
        """What is posted for one draft: the policy's messages, and the whole of its distribution."""
        how = self.policy.sampling
        system, user = messages(self.policy.plain(request))
        parts = [shown(request) if part["type"] == "image" else part for part in user["content"]]
        random = how.temperature > 0 and seed != LIKELIEST
        body = {
            "model": self._serving,
            "messages": [system, {**user, "content": parts}],
            "temperature": how.temperature if random else 0.0,
            "max_completion_tokens": how.longest,
            "stop_token_ids": list(how.ends),
            "logit_bias": {str(i): NEVER for i in how.never},
            "add_special_tokens": how.adds_first,
            **PLAIN,
        }
        return body | ({"seed": signed(int(seed))} if random else {})

    # --- what comes back

    def _draft(self, request: Request, answer: Any) -> Draft:
        tokens, log_probs = drawn(answer, self.server.url)
        how = self.policy.sampling
        wrong = [i for i in tokens if i in how.never or not 0 <= i < len(self.policy.processor.tokenizer)]
        if wrong:
            raise ValueError(
                f"{self.server.url} drew token {wrong[0]}, which it was told never to draw (logit_bias), or "
                "which the policy does not have: serve the policy's own base"
            )
        if len(tokens) > how.longest:
            raise ValueError(f"{self.server.url} drew {len(tokens)} tokens; at most {how.longest} were asked")
        if request.estimate is None and not self._compared:
            self._compare(request, answer.get("prompt_token_ids"))
        return self.policy.draft(request, torch.tensor(tokens), torch.tensor(log_probs))

    def _compare(self, request: Request, told: list[int] | None) -> None:
        """The prompt without an image must be read as the policy reads it, token for token."""
        self._compared = True
        ours = self.policy.encode([request]).ids[0].tolist()
        if told is not None and told != ours:
            k = len(os.path.commonprefix([ours, told]))
            theirs, its = (self.policy.processor.tokenizer.decode(ids[k : k + 8]) for ids in (told, ours))
            raise ValueError(
                f"{self.server.url} reads the prompt otherwise: {theirs!r} where the policy reads {its!r}, "
                f"from token {k} on; serve the policy's own base, with its chat template"
            )

    def _forget(self, name: str | None) -> None:
        if name is not None:
            self._once("unload_lora_adapter", {"lora_name": name})
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _once(self, what: str, body: Mapping[str, Any]) -> None:
        """Asks for a change of the server's LoRAs, which a second try would find made already."""
        try:
            replace(self.server, retries=0).post(what, body, plain=True)
        except Refused as error:
            if error.status != 404:
                raise
            told = (
                f"{self.server.url} has no {what}, or not this LoRA (status 404): start vLLM with "
                "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            )
            raise Refused(told, error.status) from error


def shown(request: Request) -> dict[str, Any]:
    """The estimate as a part of a chat message."""
    return {"type": "image_url", "image_url": {"url": data_url(request)}}


def signed(seed: int) -> int:
    """The seed as the 64-bit number with a sign that the protocol has room for."""
    return (seed + 2**63) % 2**64 - 2**63


def drawn(answer: Any, url: str) -> tuple[list[int], list[float]]:
    """Token ids and log-probabilities of an answer; ValueError where they are not all there."""
    try:
        choice = answer["choices"][0]
        tokens = [int(i) for i in choice["token_ids"]]
        log_probs = [float(one["logprob"]) for one in choice["logprobs"]["content"]]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{url} answered without token ids or log-probs ({error!r}); vLLM gives both from 0.10.2 on"
        ) from error
    if not tokens or len(tokens) != len(log_probs):
        raise ValueError(f"{url} answered with {len(tokens)} tokens and {len(log_probs)} log-probs")
    if not all(-1000 < p <= 1e-3 for p in log_probs):
        raise ValueError(f"{url} answered with log-prob {min(log_probs)}, which no drawn token can have")
    return tokens, log_probs

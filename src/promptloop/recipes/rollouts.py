"""How a training's policy is held (LoRA, four bits), and a vLLM server that draws its drafts: `--rollouts
http://HOST:PORT/v1`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from promptloop.objectives.mismatch import Mismatch
from promptloop.objectives.prompts import PromptGRPO
from promptloop.parameters import LANGUAGE, LoRA
from promptloop.policies.mllm import Mllm
from promptloop.policies.served import Served, vllm
from promptloop.policies.server import Refused


def check(settings: Any) -> None:
    """Refuses (ValueError) an address that is none, and what a server or four-bit weights cannot do."""
    lora_of(settings), mismatch_of(settings)
    if settings.policy_quantize != "none" and settings.train_weights == "all":
        raise ValueError("policy_quantize 4bit keeps the weights as they are; train a LoRA, not all weights")
    if settings.rollouts == "none":
        return
    vllm(settings.rollouts)
    if settings.train_weights == "all":
        raise ValueError("rollouts by a server follow the policy by its LoRA; they need train_weights lora")
    if settings.shard:
        raise ValueError("rollouts by a server save the LoRA of each process, and shard has divided it")


def lora_of(settings: Any) -> LoRA:
    return LoRA(settings.rank, 2 * settings.rank, settings.lora_targets or LANGUAGE)


def mismatch_of(settings: Any) -> Mismatch:
    return Mismatch(settings.mismatch_cap, settings.mismatch_limit)


def served_of(settings: Any, policy: Mllm) -> Served | None:
    """Who draws the drafts in place of `policy`; None: it does.

    The LoRA goes to the server through `rollouts_folder`, else through a folder of this machine's own.
    """
    if settings.rollouts == "none":
        return None
    given = settings.rollouts_folder
    folder = Path(tempfile.mkdtemp(prefix="promptloop-")) if given == "none" else Path(given)
    return Served(policy, vllm(settings.rollouts), folder)


@contextmanager
def serving(objective: PromptGRPO) -> Iterator[None]:
    """Takes the LoRA off the server at the end, if there is a server and it still answers."""
    try:
        yield
    finally:
        if objective.served is not None:
            with suppress(ConnectionError, Refused):
                objective.served.close()

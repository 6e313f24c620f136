"""A vLLM server that draws the drafts of a training: `--rollouts http://HOST:PORT/v1`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from promptloop.objectives.prompts import PromptGRPO
from promptloop.policies.mllm import Mllm
from promptloop.policies.served import Served, vllm
from promptloop.policies.server import Refused
from promptloop.recipes.settings import Grpo


def served_of(settings: Grpo, policy: Mllm) -> Served | None:
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

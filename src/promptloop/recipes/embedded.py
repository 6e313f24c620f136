"""`promptloop train mini`: the settings for the embedded world, all of them measured there (docs/log.md)."""

from __future__ import annotations

from typing import Any

from promptloop.recipes.settings import EMBEDDED, Grpo

MINI: dict[str, Any] = {
    "backbone": "mini-turbo",
    "policy": "mini-vlm",
    "prompts": EMBEDDED,
    "reward": "oracle",
    "gold": "oracle-strict",
    "queries": 12,
}


def mini(**given: Any) -> Grpo:
    """The embedded policy on the embedded backbone, graded by the oracle: learns on two CPU cores."""
    return Grpo(**MINI | given)

"""`promptloop train mini`: the settings for the embedded world, which docs/results.md measures as "ahead".

They train the first draft of every trajectory, where this world's largest gain is; `LATER` trains those that
look, behind it. Five from the start, by one policy, learn less (docs/results.md: "alone").
"""

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
    "steps": 160,
    "refinements": 1,
}
LATER: dict[str, Any] = {  # beside `first`, the run of the first draft
    "steps": 60,
    "refinements": 5,
    "credit": "branch",
    "lr": 6e-4,
    "kl_weight": 0.03,
    "temperature": 0.7,
}


def mini(**given: Any) -> Grpo:
    """The embedded policy on the embedded backbone, graded by the oracle: learns on two CPU cores."""
    return Grpo(**MINI | given)

"""From a name to a reward."""

from __future__ import annotations

import difflib
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from promptloop.names import nearest
from promptloop.recipes.parts import DOTTED, imported

LEARNED = {  # NAME:FOLDER_OR_ID -> "module:class" with load(FOLDER_OR_ID or None, device=)
    "imagereward": "promptloop.rewards.imagereward:ImageReward",
}


def reward_named(name: str, device: str | torch.device = "cpu") -> Any:
    """The reward `name` stands for: one of the embedded world's, a learned one ("imagereward:FOLDER_OR_ID")
    or the user's own ("module:name"); ValueError with the nearest.
    """
    from promptloop.world.judge import JudgeReward
    from promptloop.world.oracle import OracleReward

    kind, _, where = name.partition(":")
    if kind in LEARNED and (where or ":" not in name):
        return imported(LEARNED[kind], "reward").load(where or None, device=device)
    if DOTTED.fullmatch(name) and not mistyped(kind):
        made = imported(name, "reward")
        made = made() if isinstance(made, type) else made
        if not callable(made):
            raise ValueError(
                f"reward {name!r} is a {type(made).__name__}; it must be callable: (images, queries)"
            )
        return made
    known: dict[str, Any] = {
        "oracle": OracleReward,
        "oracle-strict": partial(OracleReward, strict=True),
        "preference": JudgeReward,
    }
    if name not in known:
        names = [*known, *LEARNED, *(f"{learned}:{where}" for learned in LEARNED if where)]
        raise ValueError(f"no reward {name!r}; {nearest(name, names)} (or your own package.module:name)")
    return known[name]()


def mistyped(kind: str) -> bool:
    """Whether `kind` is nearly a learned reward's name and no module of the user's."""
    near = difflib.get_close_matches(kind, LEARNED, n=1, cutoff=0.8)
    return bool(near) and find_spec(kind.partition(".")[0]) is None

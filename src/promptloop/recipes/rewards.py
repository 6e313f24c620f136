"""From a name to a reward, of images or of estimates, and to a network of golden noise."""

from __future__ import annotations

import difflib
import re
from importlib.util import find_spec
from typing import Any

import torch

from promptloop.names import nearest
from promptloop.recipes.parts import DOTTED, imported
from promptloop.rewards.composite import Weighted
from promptloop.rewards.known import KNOWN

LEARNED = tuple(name for name, known in KNOWN.items() if known.where)  # NAME or NAME:WHERE
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
TERM = re.compile(rf"(?:({NUMBER})\s*\*\s*)?([^*]+)")  # WEIGHT*NAME, or NAME


def reward_named(name: str, device: str | torch.device = "cpu") -> Any:
    """The reward `name` stands for: one of the embedded world's, a learned one ("imagereward:FOLDER_OR_ID"),
    the user's own ("module:name"), or a weighted sum ("0.25*imagereward:DIR + 1*judge:DIR"); ValueError with
    the nearest.
    """
    if " + " in name or "*" in name:
        return weighted(name, device)
    kind, _, where = name.partition(":")
    known = KNOWN.get(kind)
    if known is not None and known.where and (where or ":" not in name):
        return imported(known.made, "reward").load(where or None, device=device)
    if known is not None and ":" not in name:
        return imported(known.made, "reward")()
    if DOTTED.fullmatch(name) and not mistyped(kind):
        return own(name, "reward", "(images, queries)")
    names = [*KNOWN, *(f"{learned}:{where}" for learned in LEARNED if where)]
    raise ValueError(f"no reward {name!r}; {nearest(name, names)} (or your own package.module:name)")


def early_reward_named(name: str, device: str | torch.device = "cpu") -> Any:
    """A reward of estimates that is told their level (controls.ttsnap.EarlyReward): the folder of a distilled
    one, the user's own ("module:name"), or None for "none".
    """
    if DOTTED.fullmatch(name):
        return own(name, "early", "(images, queries, level)")
    from promptloop.world.early_judge import EarlyJudge

    return None if name == "none" else EarlyJudge.load(name)


def golden_noise_named(name: str, device: str | torch.device = "cpu") -> Any:
    """A network of golden noise: a folder, a released .pth file, or the user's own ("module:name")."""
    if DOTTED.fullmatch(name):
        return own(name, "network", "(noise, text)")
    from promptloop.controls.npnet_weights import load

    return load(name, device=device)


def log_h_named(name: str, device: str | torch.device = "cpu") -> Any:
    """The folder of a log h, or the user's own ("module:name", that makes a LogH)."""
    from promptloop.controls.matching import LogH

    made = imported(name, "h")() if DOTTED.fullmatch(name) else LogH.load(name)
    return made.to(device).requires_grad_(False)


def own(name: str, role: str, called: str) -> Any:
    """What "module:name" stands for, or an instance of it; ValueError where it cannot be called."""
    made = imported(name, role)
    made = made() if isinstance(made, type) else made
    if not callable(made):
        raise ValueError(f"{role} {name!r} is a {type(made).__name__}; it must be callable: {called}")
    return made


def weighted(said: str, device: str | torch.device) -> Weighted:
    """The sum that is written out: its terms are named by what stands before the colon, where that is enough
    to tell them apart.
    """
    parts = [part.strip() for part in said.split(" + ")]
    terms = [(float(match[1] or 1), match[2].strip()) for part in parts if (match := TERM.fullmatch(part))]
    if len(terms) < len(parts):
        wrong = next(part for part in parts if not TERM.fullmatch(part))
        raise ValueError(f"reward {said!r} has the term {wrong!r}, which is not WEIGHT*NAME; write a sum as "
                         "0.25*imagereward:DIR + -1*judge:DIR")  # fmt: skip
    short = [name.partition(":")[0] if name.partition(":")[0] in LEARNED else name for _, name in terms]
    names = short if len(set(short)) == len(terms) else [name for _, name in terms]
    if len(set(names)) < len(terms):
        raise ValueError(f"reward {said!r} has a term twice; add up its weights")
    rewards = [(weight, reward_named(name, device)) for weight, name in terms]
    return Weighted(dict(zip(names, rewards, strict=True)))


def mistyped(kind: str) -> bool:
    """Whether `kind` is nearly a learned reward's name and no module of the user's."""
    near = difflib.get_close_matches(kind, LEARNED, n=1, cutoff=0.8)
    return bool(near) and find_spec(kind.partition(".")[0]) is None

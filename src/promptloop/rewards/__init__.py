"""Rewards: images and queries to one number each, higher is better. Torch loads when one is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptloop.rewards.cached import Cached
    from promptloop.rewards.composite import Gate, Weighted
    from promptloop.rewards.contract import Reward, scored
    from promptloop.rewards.remote import RemoteReward

_NAMES = {
    "Cached": "promptloop.rewards.cached:Cached",
    "Gate": "promptloop.rewards.composite:Gate",
    "RemoteReward": "promptloop.rewards.remote:RemoteReward",
    "Reward": "promptloop.rewards.contract:Reward",
    "scored": "promptloop.rewards.contract:scored",
    "Weighted": "promptloop.rewards.composite:Weighted",
}

__all__ = ["Cached", "Gate", "RemoteReward", "Reward", "scored", "Weighted"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _NAMES[name].partition(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value

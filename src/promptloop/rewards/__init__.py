"""Rewards: callables from images and the user's queries to one number each, higher is better."""

from promptloop.rewards.composite import Weighted
from promptloop.rewards.contract import Reward, scored

__all__ = ["Reward", "Weighted", "scored"]

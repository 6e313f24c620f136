"""Controls: what acts on the sampling loop, each through the five verbs of `promptloop.sample.Control`."""

from promptloop.controls.blockwise import UniCoDe
from promptloop.controls.candidates import SVDD, Demon
from promptloop.controls.doob import DOIT
from promptloop.controls.golden import GoldenNoise
from promptloop.controls.gradients import Ascent, LossGuidance, NoisyRewardGradient, RewardGradient
from promptloop.controls.guidance import CFG, PromptGuidance
from promptloop.controls.matching import DoobMatching
from promptloop.controls.negative import NegativePrompt
from promptloop.controls.noise import BestOf
from promptloop.controls.particles import DAS, FK
from promptloop.controls.prompt import PromptLoop, Rewrite, Scheduled
from promptloop.controls.record import Record
from promptloop.controls.recurrence import Recurrence
from promptloop.controls.streams import Streams
from promptloop.controls.ttsnap import TTSnap
from promptloop.controls.tuned import RLG, Blend
from promptloop.controls.weighted import WeightedTokens

__all__ = [
    "Ascent",
    "BestOf",
    "Blend",
    "CFG",
    "DAS",
    "DOIT",
    "Demon",
    "DoobMatching",
    "FK",
    "GoldenNoise",
    "LossGuidance",
    "NegativePrompt",
    "NoisyRewardGradient",
    "PromptGuidance",
    "PromptLoop",
    "RLG",
    "Record",
    "Recurrence",
    "RewardGradient",
    "Rewrite",
    "SVDD",
    "Scheduled",
    "Streams",
    "TTSnap",
    "UniCoDe",
    "WeightedTokens",
]

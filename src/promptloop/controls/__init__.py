"""Controls: what acts on the sampling loop, each through the five verbs of `promptloop.sample.Control`."""

from promptloop.controls.doob import DOIT
from promptloop.controls.gradients import Ascent, LossGuidance, NoisyRewardGradient, RewardGradient
from promptloop.controls.guidance import CFG, PromptGuidance
from promptloop.controls.prompt import PromptLoop, Rewrite, Scheduled
from promptloop.controls.record import Record
from promptloop.controls.recurrence import Recurrence
from promptloop.controls.streams import Streams
from promptloop.controls.tuned import RLG, Blend

__all__ = [
    "CFG",
    "DOIT",
    "RLG",
    "Ascent",
    "Blend",
    "LossGuidance",
    "NoisyRewardGradient",
    "PromptGuidance",
    "PromptLoop",
    "Record",
    "Recurrence",
    "Rewrite",
    "RewardGradient",
    "Scheduled",
    "Streams",
]

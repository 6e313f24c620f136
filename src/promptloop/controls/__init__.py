"""Controls: what acts on the sampling loop, each through the five verbs of `promptloop.sample.Control`."""

from promptloop.controls.candidates import SVDD, Demon
from promptloop.controls.guidance import CFG
from promptloop.controls.noise import BestOf
from promptloop.controls.particles import DAS, FK
from promptloop.controls.prompt import PromptLoop, Rewrite, Scheduled
from promptloop.controls.record import Record
from promptloop.controls.streams import Streams

__all__ = [
    "BestOf",
    "CFG",
    "DAS",
    "Demon",
    "FK",
    "PromptLoop",
    "Record",
    "Rewrite",
    "Scheduled",
    "Streams",
    "SVDD",
]

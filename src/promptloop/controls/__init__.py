"""Controls: what acts on the sampling loop. Each file says which verb it uses and from which paper it comes."""

from promptloop.controls.guidance import CFG
from promptloop.controls.prompt import PromptLoop, Rewrite, Scheduled
from promptloop.controls.record import Record

__all__ = ["CFG", "PromptLoop", "Record", "Rewrite", "Scheduled"]

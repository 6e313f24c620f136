"""Who writes prompts. Nothing here knows the sampling loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptloop.policies.contract import Draft, Policy, Request
from promptloop.policies.first import First
from promptloop.policies.fixed import Identity, Table, Template

if TYPE_CHECKING:
    from promptloop.policies.mllm import Mllm

__all__ = ["Draft", "First", "Identity", "Mllm", "Policy", "Request", "Table", "Template"]


def __getattr__(name: str) -> Any:
    if name == "Mllm":  # transformers loads when it is used
        from promptloop.policies.mllm import Mllm

        return Mllm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

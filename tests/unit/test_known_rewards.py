"""The table of named rewards leads to what it says."""

from importlib import import_module

import pytest

from promptloop.rewards.known import KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_every_row_leads_somewhere(name: str) -> None:
    """Fails if a module or class was renamed, or what takes a folder has no `load`."""
    known = KNOWN[name]
    module, _, made = known.made.partition(":")
    found = getattr(import_module(module), made)
    assert callable(found)
    assert hasattr(found, "load") == bool(known.where)
    assert known.title
    assert known.scale

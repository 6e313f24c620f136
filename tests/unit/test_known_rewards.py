"""The table of named rewards leads to what it says."""

from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from promptloop.recipes import reward_list
from promptloop.recipes.rewards import reward_named
from promptloop.rewards.contract import name_of
from promptloop.rewards.known import KNOWN, Known


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
    assert reward_list.docstring(known.made)


@pytest.mark.parametrize("name", KNOWN)
def test_the_table_tells_of_gradients_as_the_class_does(name: str) -> None:
    """Fails if `promptloop rewards` promises gradients that do not flow, or hides some (tried: `True` for the
    oracle's, `False` for Sharpness's).
    """
    own = made_by(name)
    assert getattr(own, "differentiable", False) is KNOWN[name].differentiable


def made_by(name: str) -> type:
    """What the row makes: its class, or what its function says it gives."""
    module, _, made = KNOWN[name].made.partition(":")
    found: Any = getattr(import_module(module), made)
    return found if isinstance(found, type) else get_type_hints(found)["return"]


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "frechet"])  # it makes 256 scenes
def test_errors_call_a_reward_by_its_name(name: str) -> None:
    """Fails if an error tells of a class that nobody named (tried: one `__name__` for both oracles)."""
    at_once = not (KNOWN[name].where or KNOWN[name].extra)
    assert name_of(reward_named(name) if at_once else object.__new__(made_by(name))) == name


def test_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when an extra that is not installed, or a cache without files, counts as ready."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    learned = Known("a:b", "t", "s", where="DIR|ID", hub="them/their-reward")
    assert reward_list.state(learned) == "needs weights"
    kept = tmp_path / "models--them--their-reward" / "snapshots" / "1"
    kept.mkdir(parents=True)
    assert reward_list.state(learned) == "needs weights"
    (kept / "weights.pt").write_bytes(b"")
    assert reward_list.state(learned) == "ready"
    lines = ["numpy>=2; extra == 'there'", "no-such-thing>=1; extra == 'gone'", "numpy>=2; extra == 'gone'"]
    monkeypatch.setattr(reward_list, "requires", lambda name: lines)
    for extra, wanted in (("there", "ready"), ("gone", "needs extra"), ("unheard-of", "needs extra")):
        assert reward_list.state(Known("a:b", "t", "s", extra=extra)) == wanted
    assert reward_list.state(Known("a:b", "t", "s", where="URL#MODEL")) == "needs URL#MODEL"


def test_the_table_of_the_docs_is_the_one_of_the_code() -> None:
    """Every reward has its row in docs/rewards.md (`reward_list.row` writes it)."""
    rows = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8").splitlines()
    for name, known in KNOWN.items():
        assert reward_list.row(name, known) in rows

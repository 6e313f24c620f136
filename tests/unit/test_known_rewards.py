"""The table of named rewards leads to what it says."""

from importlib import import_module
from pathlib import Path

import pytest

from promptloop.recipes import reward_list
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

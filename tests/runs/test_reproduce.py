"""`promptloop reproduce`: what it refuses, and that its tables come from its files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptloop.recipes import reproduce as recipe
from promptloop.recipes.claims import CLAIMS
from promptloop.world import study


def test_an_unknown_claim_and_a_missing_policy(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence each, before anything is measured. Fails if a missing policy is found out too late."""
    monkeypatch.setattr(recipe, "study", lambda name, seed: study("never-trained", seed))
    code, _, err = command("reproduce", "C11", "--out", str(tmp_path))
    assert code == 2 and "did you mean 'C1'" in err
    code, _, err = command("reproduce", "C2", "--quick", "--out", str(tmp_path / "new"))
    assert code == 2 and "--train" in err and not (tmp_path / "new").exists()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.txt").touch()
    code, _, err = command("reproduce", "C1", "--quick", "--out", str(tmp_path / "theirs"))
    assert code == 2 and "a.txt" in err
    code, _, err = command("reproduce", "C1", "--quick", "--out", str(tmp_path / "theirs" / "a.txt"))
    assert code == 2 and "a.txt is a file; give a folder" in err
    assert all(recipe.missing(claim, 1, None) for claim in CLAIMS)


def test_a_row_is_measured_once_and_other_settings_are_refused(tmp_path: Path) -> None:
    """The query alone on seven queries. Fails when a row is drawn anew, or settings are not compared."""
    first = recipe.row("base", tmp_path, 7, 1, None)
    assert recipe.row("base", tmp_path, 7, 1, None) == first
    assert len(first["scores"]["oracle"]) == 1 and len(first["scores"]["preference"][0]) == 7
    try:
        recipe.row("base", tmp_path, 14, 1, None)
    except ValueError as error:
        assert "other settings" in str(error)
    else:
        raise AssertionError("another number of queries was taken for the same row")


def test_tables_are_made_from_the_files(command: Callable[..., Any], tmp_path: Path) -> None:
    """Base scores 0.2 soft, 0.1 strict, 0.4 learned, the policy 0.7, 0.6, 0.9; the second task 0.1 less.

    Fails when rows, rewards, tasks or costs are mixed up.
    """
    for name, score in (("base", 0.2), ("n1", 0.6), ("n5", 0.7)):
        settings = recipe.settings_of(name, recipe.QUICK, 1, None)
        less = [0.1 * (i % 7 == 1) for i in range(recipe.QUICK)]
        scores = {
            reward: [[score + more - part for part in less]]
            for reward, more in zip(recipe.REWARDS, (0.0, -0.1, 0.2), strict=True)
        }
        cost = {"denoiser calls": 40.0, "policy tokens": 3.0, "kept": 0.5, "seconds": 0.1}
        file = tmp_path / "rows" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"settings": settings, "scores": scores, "cost": cost}))
    code, out, err = command("reproduce", "c1", "--quick", "--out", str(tmp_path))
    assert code == 0, err
    assert "| the query | 0.20 | 0.10 | 0.20 |" in out  # by task
    row = next(line for line in out.splitlines() if line.startswith("| the query | 1 |"))
    cells = [cell.strip().split(" ")[0] for cell in row.strip("|").split("|")]
    assert cells[1:] == ["1", "0.186", "0.086", "0.386", "40", "3.0", "0.50", "0.10"]
    assert CLAIMS["C1"].title in out
    assert "| 0.500 (0.500 to 0.500) | 0.500 (0.500 to 0.500) |" in out
    assert (tmp_path / "tables.md").read_text().strip() == out.strip()


def test_the_committed_rows_make_the_committed_tables(command: Callable[..., Any], tmp_path: Path) -> None:
    """What docs/results holds is taken as measured, and results.md is what is printed from it.

    Fails when a setting is added that the rows do not know of, weights are replaced, or results.md is edited.
    """
    docs = Path(__file__).parents[2] / "docs"
    shutil.copytree(docs / "results", tmp_path / "rows")
    code, out, err = command("reproduce", "--out", str(tmp_path))
    assert code == 0, err
    assert out.strip() == (docs / "results.md").read_text().split("\n---\n", 1)[1].strip()

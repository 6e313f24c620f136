"""The demo and its table, with tiny random models in place of the embedded ones."""

import json
import sys
from pathlib import Path

import pytest
import tiny
import tiny_vlm

from promptloop import cli
from promptloop.recipes import parts
from promptloop.recipes.usual import GUIDED_WINDOW
from promptloop.world.queries import held_out


def test_demo_grades_six_held_out_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if the table shows other numbers than the trace, or if an embedded backbone is not graded."""
    models = {
        "mini-turbo": tiny.saved(tiny.sd(sample=32), tmp_path / "sd"),
        "mini-policy": tiny_vlm.build("llava", tmp_path / "vlm"),
    }
    monkeypatch.setattr(parts, "weights", models.__getitem__)
    monkeypatch.setattr(sys, "argv", ["promptloop", "demo", "--out", str(tmp_path / "demo"), "-n", "1"])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr().out
    assert end.value.code == 0, shown
    trace = json.loads((tmp_path / "demo" / "trace.json").read_text())
    assert trace["job"]["queries"] == held_out(6, 0) and trace["job"]["window"] == list(GUIDED_WINDOW)
    assert trace["refinement_steps"] == [0, 3, 5, 7, 9]
    for sample in trace["samples"]:
        soft = [sample[side]["score"]["soft"] for side in ("base", "image")]
        row = next(line for line in shown.splitlines() if line.startswith(sample["query"]))
        assert row.split()[-4:-2] == [f"{value:.2f}" for value in soft]
        assert sample["not_scored"] is None and sample["image"]["score"]["clauses"]
    page = (tmp_path / "demo" / "trace.html").read_text()
    assert "6 queries" in page and "soft" in page and "mean" in shown

"""A run again from its trace: the same pixels, or one sentence about what is not as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import promptloop


def test_replay_makes_the_same_pixels_and_names_the_first_that_differs(
    folder: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """Fails if the policy or the noise draws from a generator that is not seeded by the trace."""
    code, out, _ = command("replay", str(folder / "trace.json"), "--out", str(tmp_path / "again"))
    assert code == 0 and "the same: 4 images" in out
    again = json.loads((tmp_path / "again" / "trace.json").read_text())
    trace = json.loads((folder / "trace.json").read_text())
    assert [s["image"]["drafts"] for s in again["samples"]] == [
        s["image"]["drafts"] for s in trace["samples"]
    ]
    trace["samples"][1]["base"]["sha256"] = "0" * 64
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    code, _, err = command("replay", str(tmp_path / "trace.json"))
    assert code == 1 and err.startswith("01-base.png differs (1 of 4")


def test_replay_takes_the_threads_of_the_trace_and_says_what_changed(folder: Path, tmp_path: Path) -> None:
    trace = json.loads((folder / "trace.json").read_text())
    trace["environment"] |= {"threads": 2, "torch": "1.0"}
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    before = torch.get_num_threads()
    replayed = promptloop.replay(tmp_path / "trace.json")
    assert replayed.made.trace["environment"]["threads"] == 2 and torch.get_num_threads() == before
    assert replayed.changed == {"torch": ("1.0", torch.__version__)}


def test_replay_refuses_other_weights(folder: Path, tmp_path: Path) -> None:
    trace = json.loads((folder / "trace.json").read_text())
    trace["job"]["backbone"] = str(tiny.saved(tiny.sd(seed=1), tmp_path / "other"))
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    with pytest.raises(ValueError, match="not the one of the trace"):
        promptloop.replay(tmp_path / "trace.json")


def test_an_edited_trace_is_one_sentence(folder: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    """Fails when a missing entry of the trace ends in a traceback's words."""
    trace = json.loads((folder / "trace.json").read_text())
    for key in ("samples", "environment", "backbone"):
        broken = tmp_path / f"{key}.json"
        broken.write_text(json.dumps({name: value for name, value in trace.items() if name != key}))
        code, _, error = command("replay", str(broken))
        assert code == 2 and "is not a whole trace" in error and key in error


def test_what_an_edited_trace_tells_is_not_vouched_for(
    folder: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """Fails if fewer images are compared than are made, drafts or scores are not looked at, or the trace that
    is compared with is overwritten.
    """
    text = (folder / "trace.json").read_text()

    def replayed(**changed: Any) -> tuple[int, str]:
        trace = json.loads(text)
        trace["samples"] = trace["samples"][: changed.pop("samples", None)]
        trace["job"] |= changed.pop("job", {})
        for name, value in changed.items():
            trace["samples"][0]["image"][name] = value
        (tmp_path / "trace.json").write_text(json.dumps(trace))
        code, _, err = command("replay", str(tmp_path))
        return code, err

    code, err = replayed(samples=1)
    assert code == 2 and "changed by hand" in err
    for job, wanted in (({"steps": "abc"}, "job's steps is 'abc'"), ({"queries": 5}, "job's queries is 5")):
        code, err = replayed(job=job)
        assert code == 2 and wanted in err
    drafts = json.loads(text)["samples"][0]["image"]["drafts"]
    code, err = replayed(drafts=[{**draft, "prompt": "a forged prompt"} for draft in drafts])
    assert code == 1 and "other drafts" in err
    code, _, err = command("replay", str(folder), "--out", str(folder), "--overwrite")
    assert code == 2 and "holds the trace itself" in err and (folder / "trace.json").read_text() == text

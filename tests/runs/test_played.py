"""A run's policy is played as it was trained, unless told otherwise."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_training import SMALL

from promptloop.recipes.played import FILE, Played, played
from promptloop.recipes.runs import try_it


def test_generate_plays_a_run_as_it_was_trained(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Fails when five refinements are taken, the window or the loop of the training forgotten, in the run's
    folder, in its checkpoints, or in a run of an earlier version; or when a flag does not win.
    """
    run, sizes = tmp_path / "a run", ["--steps", "1", *models, *SMALL]
    told = ["--refinements", "1", "--loop", "open", "--window", "0,0.5", "--first-alone", "0"]
    sizes = [word for k, word in enumerate(sizes) if not {*sizes[max(k - 1, 0) : k + 1]} & {*told[::2]}]
    code, out, err = command("train", "mini", *sizes, *told, "--out", str(run))
    assert code == 0, err
    words = shlex.split(next(line for line in out.splitlines() if "try it" in line))
    assert words[words.index("--policy") + 1] == str(run)  # quoted
    assert words[words.index("--backbone") + 1] == models[1]
    assert shlex.join(words[2:]).replace("'a jade disc and a golden block'", "") in (
        (run / "README.md").read_text().replace('"a jade disc and a golden block"', "")
    )
    job = made(command, models, run, tmp_path / "as trained")
    assert (job["refinements"], job["window"], job["open_loop"]) == (1, [0.0, 0.5], True)
    job = made(command, models, run / "checkpoints" / "000001", tmp_path / "checkpoint")
    assert (job["refinements"], job["open_loop"]) == (1, True)
    told = ["--refinements", "2", "--window", "0", "1", "--closed-loop"]
    job = made(command, models, run, tmp_path / "as told", *told)
    assert (job["refinements"], job["window"], job["open_loop"]) == (2, [0.0, 1.0], False)
    (run / "policy" / FILE).unlink()
    assert played(str(run)) == played(str(run / "policy")) == Played(1, (0.0, 0.5), "open")
    assert played("mini-policy") == Played()
    (run / "policy" / FILE).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        played(str(run))


def made(
    command: Callable[..., Any], models: list[str], policy: Path, out: Path, *told: str
) -> dict[str, Any]:
    """The job of a small run of the policy."""
    small = ["--backbone", models[1], "-n", "1", "--steps", "4", "--out", str(out)]
    code, _, err = command("generate", "a star", "--policy", str(policy), *small, *told)
    assert code == 0, err
    job: dict[str, Any] = json.loads((out / "trace.json").read_text())["job"]
    return job


def test_the_command_that_tries_a_backbone_names_it_alone() -> None:
    assert try_it("my run", "backbone", {"backbone": "mini-unet"}) == (
        "promptloop generate \"a jade disc and a golden block\" --backbone 'my run' --compare --out out"
    )

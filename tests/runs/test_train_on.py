"""What training goes on from, and what is made of a run: resumed, a first draft for another, on the hub."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import SMALL, learned, result, train

from promptloop.recipes import parts


def test_going_on_says_what_is_lost(models: list[str], tmp_path: Path) -> None:
    """Fails when a run without a checkpoint starts anew in silence, lost metrics are passed over, or a
    damaged config ends in a parser's words.
    """
    run = tmp_path / "run"
    code, _, err = train("mini", "--steps", "3", *models, *SMALL, "--out", str(run))
    assert code == 0, err
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(True)[1:]))
    code, _, err = train("mini", "--resume", "--out", str(run))
    assert code == 0 and "has lost the lines of 1 updates, the first 1" in err
    shutil.rmtree(run / "checkpoints")
    code, _, err = train("mini", "--resume", "--out", str(run))
    assert code == 0 and "no checkpoint yet" in err
    (run / "config.json").write_text("{")
    code, _, err = train("mini", "--resume", "--out", str(run))
    assert code == 2 and "config.json is damaged" in err


def test_a_first_draft_of_another_policy(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """A run trains later drafts behind a run that wrote the first; `generate` uses both, going on needs both.

    Fails when the first policy is trained too, left out of what is saved, or forgotten by what loads it.
    """
    ahead, later = tmp_path / "ahead", tmp_path / "later"
    code, _, err = command("train", "mini", "--steps", "1", *models, *SMALL, "--out", str(ahead))
    assert code == 0, err
    sizes = SMALL[: SMALL.index("--first-alone")]
    code, _, err = command("train", "mini", "--steps", "2", *models, *sizes, "--first", str(ahead),
                           "--credit", "branch", "--noise", "shared", "--out", str(later))  # fmt: skip
    assert code == 2 and "given twice" in err
    sizes[sizes.index("fresh")] = "shared"
    code, _, err = command("train", "mini", "--steps", "2", *models, *sizes, "--first", str(ahead),
                           "--credit", "branch", "--out", str(later))  # fmt: skip
    assert code == 0, err
    first, kept = result(ahead), load_file(later / "policy" / "first" / "adapter_model.safetensors")
    assert first.keys() == kept.keys() and all(torch.equal(first[k], kept[k]) for k in first)
    assert learned(result(later))
    small = ["-n", "1", "--steps", "4", "--refinements", "2", "--backbone", models[1], "--window", "0", "1"]
    said = []
    for name, policy in (("a", ahead), ("b", later)):
        code, _, err = command(
            "generate", "a star", "--policy", str(policy), *small, "--out", str(tmp_path / name)
        )
        assert code == 0, err
        told = json.loads((tmp_path / name / "trace.json").read_text())
        said.append(told["samples"][0]["image"]["drafts"][0]["answer"])
    assert said[0] == said[1]
    code, _, err = command(
        "train", "mini", *models[:2], "--policy", str(later), "--out", str(tmp_path / "on")
    )
    assert code == 2 and f"--first {later / 'policy' / 'first'}" in err


def test_a_lora_on_the_hub_is_a_policy(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """What --push-to-hub uploads, as it lies in the hub's cache. Fails when its base is not looked up."""
    run, hub = tmp_path / "run", tmp_path / "hub" / "models--somebody--loop"
    code, _, err = command("train", "mini", "--steps", "1", *models, *SMALL, "--out", str(run))
    assert code == 0, err
    shutil.copytree(run / "policy", hub / "snapshots" / "0123abcd")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0123abcd")
    small = ["-n", "1", "--steps", "4", "--refinements", "2", "--backbone", models[1]]
    done = subprocess.run(
        [sys.executable, "-m", "promptloop", "generate", "a star", "--policy", "somebody/loop", *small,
         "--out", str(tmp_path / "out")],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "1 images" in done.stdout, done.stderr


def test_a_mistyped_folder_is_not_asked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when runs/loop waits half a minute for a network, where runs is here."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no policy 'runs/loop'"):
        parts.locate("runs/loop", "policy")
    assert parts.locate("somebody/loop", "policy") == ("somebody/loop", False)

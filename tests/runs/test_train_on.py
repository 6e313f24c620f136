"""What training goes on from, and what is made of a run: resumed, a first draft for another, on the hub."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import SMALL, learned, result

from promptloop.recipes import loaded, parts, runs


def test_going_on_says_what_is_lost(models: list[str], command: Callable[..., Any], tmp_path: Path) -> None:
    """Fails when a run without a checkpoint starts anew in silence, lost metrics are passed over, or a
    damaged config ends in a parser's words.
    """
    run = tmp_path / "run"
    code, _, err = command("train", "mini", "--steps", "3", *models, *SMALL, "--out", str(run))
    assert code == 0, err
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(True)[1:]))
    code, _, err = command("train", "mini", "--resume", "--out", str(run))
    assert code == 0 and "has lost the lines of 1 updates, the first 1" in err
    shutil.rmtree(run / "checkpoints")
    code, _, err = command("train", "mini", "--resume", "--out", str(run))
    assert code == 0 and "no checkpoint yet" in err
    (run / "config.json").write_text("{")
    code, _, err = command("train", "mini", "--resume", "--out", str(run))
    assert code == 2 and "config.json is damaged" in err


def test_a_run_goes_on_with_the_models_it_was_begun_with(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Fails when a backbone or a policy that has changed is trained on in silence, a run of an older version,
    which does not tell its models, cannot be gone on with, or the card's command leads nowhere.
    """
    run = tmp_path / "a run"
    given = {"--backbone": tmp_path / "sd", "--policy": tmp_path / "vlm"}
    for name, where in zip(models[::2], models[1::2], strict=True):
        shutil.copytree(where, given[name])
    named = [str(word) for pair in given.items() for word in pair]
    code, _, err = command("train", "mini", "--steps", "2", *named, *SMALL, "--out", str(run))
    assert code == 0, err
    shown = re.search(r"--policy ('.*?'|\S+) --compare", (run / "README.md").read_text())
    assert shown and shlex.split(shown[1]) == [str(run)]
    file = run / "config.json"
    config = json.loads(file.read_text())
    assert set(config["loaded"]) == {"backbone", "policy"} and config["in_force"]["decay_to"] == 0.1
    for setting, folder in (("policy", given["--policy"]), ("backbone", given["--backbone"] / "unet")):
        weights = next(folder.glob("*.safetensors"))
        before = weights.read_bytes()
        changed = {name: tensor * 1.5 for name, tensor in load_file(weights).items()}
        save_file(changed, weights, metadata={"format": "pt"})
        code, _, err = command("train", "mini", "--resume", "--out", str(run))
        assert code == 2 and f"what is loaded as {setting} (" in err and "put that back" in err
        weights.write_bytes(before)
    file.write_text(json.dumps({name: config[name] for name in ("recipe", "settings", "prompts")}))
    for says in (True, False):
        code, _, err = command("train", "mini", "--resume", "--out", str(run))
        assert code == 0 and ("does not tell what models" in err) == says, err


def test_a_card_names_what_was_uploaded(tmp_path: Path) -> None:
    """Fails when the card on the hub names a folder of the machine that trained."""
    runs.card(tmp_path, "mini", {"push_to_hub": "someone/policy"}, torch.device("cpu"), runs.POLICY)
    assert "--policy someone/policy --compare" in (tmp_path / "README.md").read_text()


def test_the_number_of_a_reward_is_that_of_its_weights(tmp_path: Path) -> None:
    """Fails when a term of a sum is passed over, or ImageReward's .pt is not looked at."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    (tmp_path / "ImageReward.pt").write_bytes(b"one")
    said = SimpleNamespace(reward=f"0.25*imagereward:{tmp_path} + 1*preference")
    first = loaded.digests(said)
    (tmp_path / "ImageReward.pt").write_bytes(b"two")
    assert set(first) == {"reward"} and first != loaded.digests(said)
    assert loaded.digests(SimpleNamespace(reward="oracle")) == {}


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

"""Tuning a backbone by Diffusion-DPO from the command line."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tiny_training import learned, start, train, updates_done


def test_a_backbone_is_tuned_on_pairs_and_used(
    models: list[str], tmp_path: Path, command: Callable[..., Any]
) -> None:
    """Stopped and resumed equals uninterrupted; `generate --backbone RUN` draws other images than its base.

    Fails if the LoRA is saved under names that the loader does not know, or pairs are made anew on resume.
    """
    sizes = ["--queries", "6", "--denoising-steps", "4", "--reward", "tiny_reward:brightness",
             "--gold", "none", "--batch", "4", "--pairs-per-level", "2", "--look-queries", "2",
             "--look-every", "2", "--lr", "1e-2", *models[:2]]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, out, err = train("mini-dpo", "--steps", "12", "--save-every", "2", "--out", str(whole), *sizes)
    assert code == 0, err
    assert "12 updates, reward" in out and f"--backbone {whole}" in out and (whole / "README.md").is_file()
    process = start("mini-dpo", "--steps", "12", "--save-every", "2", "--out", str(parts), *sizes)
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline and updates_done(parts) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and updates_done(parts) < 12
    begun = (parts / "pairs.safetensors").stat().st_mtime_ns
    code, _, err = train("mini-dpo", "--resume", "--out", str(parts))
    assert begun == (parts / "pairs.safetensors").stat().st_mtime_ns
    assert code == 0, err
    a, b = (load_file(run / "backbone" / "adapter_model.safetensors") for run in (whole, parts))
    assert a.keys() == b.keys() and all(bool((a[k] == b[k]).all()) for k in a) and learned(a)
    images = []
    for backbone in (models[1], str(whole)):
        to = tmp_path / f"out{len(images)}"
        code, _, err = command("generate", "a red circle", "--backbone", backbone, "--policy", "none",
                               "-n", "1", "--steps", "4", "--out", str(to))  # fmt: skip
        assert code == 0, err
        images.append((to / "00.png").read_bytes())
    assert images[0] != images[1]


def test_a_tuned_backbone_is_no_policy(tmp_path: Path, command: Callable[..., Any]) -> None:
    """One sentence each. Fails if the folder of one role or recipe is taken for the other's."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"recipe": "mini-dpo", "settings": {}}))
    code, _, err = command("generate", "a", "--policy", str(run), "--out", str(tmp_path / "o"))
    assert code == 2 and "trained a backbone" in err
    code, _, err = command("generate", "a", "--backbone", str(run), "--out", str(tmp_path / "o"))
    assert code == 2 and "has not ended" in err
    code, _, err = command("train", "mini", "--resume", "--out", str(run))
    assert code == 2 and "a run of mini-dpo" in err

"""The same command leaves the same folder, which others of the user's group can read."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tiny_training import SMALL, numbers


def test_one_seed_gives_one_folder(models: list[str], command: Callable[..., Any], tmp_path: Path) -> None:
    """With a reward that draws from torch's, numpy's and Python's global generators.

    Fails when one of them is not seeded, the layers of the LoRA stand in the order of a set, or safetensors
    are the owner's alone.
    """
    sizes = ["tiny_reward:drawing" if word == "tiny_reward:brightness" else word for word in SMALL]
    runs = [tmp_path / name for name in ("one", "two")]
    for k, run in enumerate(runs):
        random.seed(k), np.random.seed(k), torch.manual_seed(k)
        code, _, err = command("train", "mini", "--steps", "2", *models, *sizes, "--out", str(run))
        assert code == 0, err
    a, b = (load_file(run / "checkpoints" / "000002" / "tensors.safetensors") for run in runs)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    states = [json.loads((run / "checkpoints" / "000002" / "state.json").read_text()) for run in runs]
    assert states[0]["generators"] == states[1]["generators"]
    assert numbers(runs[0]) == numbers(runs[1])
    targets = json.loads((runs[0] / "policy" / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) > 2 and targets == sorted(targets)
    modes = {file.stat().st_mode for file in runs[0].rglob("*") if file.is_file()}
    assert modes == {(runs[0] / "config.json").stat().st_mode}

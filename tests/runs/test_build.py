"""The build of the embedded models, whole, at a tiny scale: stages run, resume, and pack loadable folders."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from promptloop.controls import CFG
from promptloop.denoisers import load
from promptloop.policies.contract import Request
from promptloop.policies.mllm import Mllm
from promptloop.sample import sample


@pytest.mark.slow
def test_the_whole_build(tmp_path):
    command = [
        sys.executable,
        "-m",
        "promptloop.world.build",
        "--out",
        str(tmp_path),
        "--scale",
        "0.0005",
        "--threads",
        "1",
    ]
    for _ in range(2):  # the second call finds everything done
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "mini-vlm:" in done.stdout and "pack:" in done.stdout
    for name in ("mini-unet", "mini-flow", "mini-turbo"):
        denoiser = load(tmp_path / "weights" / name)
        result = sample(denoiser, ["a red circle"], seeds=[0], steps=2, controls=[CFG(3.0)])
        assert (
            result.images is not None
            and result.images.shape == (1, 3, 64, 64)
            and result.images.isfinite().all()
        )
        assert denoiser.pipe.vae.config.shift_factor == 0.0
    policy = Mllm.load(tmp_path / "weights" / "mini-vlm", max_new_tokens=4)
    drafts = policy.write([Request("a red circle", "a red circle", torch.rand(3, 64, 64), 0.5)], [0])
    assert len(drafts[0].tokens) > 0


def test_an_unknown_stage_is_refused(tmp_path):
    command = [
        sys.executable,
        "-m",
        "promptloop.world.build",
        "--out",
        str(tmp_path),
        "--stage",
        "mini-unett",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice" in done.stderr

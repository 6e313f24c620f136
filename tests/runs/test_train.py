"""Training from the command line on tiny random models: it learns, resumes exactly, and refuses in one
sentence.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_vlm
import torch
from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parents[1]
SMALL = [
    "--queries", "2", "--group", "4", "--denoising-steps", "4", "--refinements", "2", "--window", "0 1",
    "--reward", "tiny_reward:brightness", "--gold", "none", "--max-new-tokens", "6", "--save-every", "2",
    "--sheet-every", "3", "--noise", "fresh", "--first-alone", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    backbone = tiny.saved(tiny.sd(), root / "sd")
    return ["--backbone", str(backbone), "--policy", str(tiny_vlm.build("idefics3", root / "vlm"))]


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "promptloop", "train", *arguments]
    return subprocess.Popen(
        command, cwd=TESTS, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def train(*arguments: str) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def result(run: Path) -> dict:
    return load_file(run / "policy" / "adapter_model.safetensors")


def learned(policy: dict) -> bool:
    """Whether the LoRA has left its start, where its second factor is 0."""
    return any(bool((t != 0).any()) for name, t in policy.items() if "lora_B" in name)


def numbers(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows]


def updates_done(run: Path) -> int:
    return len(numbers(run)) if (run / "metrics.jsonl").exists() else 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def killed_and_resumed(run: Path, steps: int, kills: int, models: list[str]) -> None:
    """A training of `steps` updates that gets SIGKILL `kills` times, at random moments of an update."""
    rng = random.Random(0)
    for _ in range(kills):
        begun = (run / "config.json").exists()
        how = ["--resume"] if begun else ["--steps", str(steps), *models, *SMALL]
        process, seen, deadline = start("mini", "--out", str(run), *how), updates_done(run), time.time() + 120
        enough = min(seen + 2, steps - 1)
        while process.poll() is None and time.time() < deadline and updates_done(run) < enough:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it had ended before it was killed: give more steps"
    assert updates_done(run) < steps, "it was done before the last kill: give more steps"
    code, _, err = train("mini", "--resume", "--out", str(run))
    assert code == 0, err


@pytest.mark.slow
def test_killed_at_random_and_resumed_equals_uninterrupted(models: list[str], tmp_path: Path) -> None:
    """Five kills. Fails when the optimiser, a generator or the position in the data is left out.

    In update 1 the first draft is alone (--first-alone 1).
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, out, err = train("mini", "--steps", "12", "--out", str(whole), *models, *SMALL)
    assert code == 0, err
    assert "12 updates" in out and (whole / "README.md").is_file()
    assert (whole / "sheets" / "000012.png").is_file()
    for update, written in (("000001", 1), ("000012", 2)):
        told = json.loads((whole / "sheets" / f"{update}.json").read_text())
        assert {len(episode["drafts"]) for episode in told} == {written}
    killed_and_resumed(parts, 12, 5, models)
    a, b = result(whole), result(parts)
    assert a.keys() == b.keys() and all(bool((a[k] == b[k]).all()) for k in a)
    assert learned(a)
    assert numbers(whole) == numbers(parts)


REFUSED = [
    (["mino"], "did you mean 'mini'"),
    (["mini", "--grup", "4"], "did you mean 'group'"),
    (["mini", "--group", "1"], "group is 1"),
    (["mini", "--first-alone", "101"], "first_alone is 101"),
    (["mini-dpo", "--batch", "9"], "do not divide"),
    (["mini-dpo", "--dpo-beta", "-1"], "dpo_beta is -1"),
    (["mini-dpo", "--average", "1.5"], "average is 1.5"),
    (["mini-dpo", "--reward", "none"], "no reward to judge"),
    (["mini", "--noise", "share"], "did you mean 'shared'"),
    (["mini", "--reward", "orcale"], "did you mean 'oracle'"),
    (["mini", "--reward", "none"], "no reward to train on"),
    (["mini", "--backbone", "mini-unett"], "did you mean 'mini-unet'"),
    (["mini", "--policy", "none"], "nothing to train"),
    (["mini", "--track", "tensorbord"], "did you mean 'tensorboard'"),
    (["mini", "--push-to-hub", "nobody"], "owner/name"),
    (["mini", "--lr", "fast"], "lr is 'fast'"),
    (["mini", "--refinements", "30"], "do not fit"),
    (["mini", "--resume"], "holds no run"),
    (["mini", "steps"], "has no place here"),
    (["mini", "--steps"], "lacks its value"),
    (["mini", "--steps", "1", "--steps", "2"], "given twice"),
]


def test_two_processes_train_as_one(models: list[str], tmp_path: Path) -> None:
    """Fails when gradients are averaged, tokens counted in one process only, or a group's seeds shift."""
    one, two = tmp_path / "one", tmp_path / "two"
    sizes = ["--steps", "3", "--denoiser-dtype", "float32", *models, *SMALL]
    code, _, err = train("mini", "--out", str(one), *sizes)
    assert code == 0, err
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, *launch, "-m", "promptloop", "train", "mini", "--out", str(two), *sizes]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    a, b = result(one), result(two)
    assert a.keys() == b.keys()
    both = [torch.cat([policy[k].flatten() for k in sorted(a)]) for policy in (a, b)]
    assert float((both[0] - both[1]).norm() / both[0].norm()) < 1e-3
    assert learned(a)
    for first, second in zip(numbers(one), numbers(two), strict=True):
        assert first == pytest.approx(second, abs=2e-4)


@pytest.mark.parametrize(("arguments", "wanted"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_it_refuses(
    arguments: list[str], wanted: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    """One sentence and exit code 2, before anything is loaded or written."""
    run = tmp_path / "run"
    code, _, err = command("train", *arguments, "--out", str(run))
    assert code == 2 and wanted in err and "Traceback" not in err
    assert not run.exists()


def test_a_broken_reward_stops_it_and_a_mended_one_goes_on(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Fails when a reward that is not a number is replaced, or the failed start blocks the folder."""
    run, sizes = tmp_path / "run", ["--steps", "1", *models, *SMALL]
    broken = ["tiny_reward:broken" if word == "tiny_reward:brightness" else word for word in sizes]
    code, _, err = command("train", "mini", *broken, "--out", str(run))
    assert code == 2 and "is nan; it is not replaced by 0" in err
    code, out, err = command("train", "mini", *sizes, "--out", str(run))
    assert code == 0 and "1 updates" in out, err
    code, _, err = command("train", "mini", *sizes, "--out", str(run))
    assert code == 2 and "--resume" in err
    policy = ["--policy", str(run), "--backbone", models[1]]
    small = ["-n", "1", "--steps", "4", "--refinements", "2", "--out", str(tmp_path / "out")]
    code, out, err = command("generate", "a star", *policy, *small)
    assert code == 0 and "1 images" in out, err


def test_metrics_go_to_tensorboard_and_a_run_that_has_not_ended_is_told(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Fails when the tracker is dropped in silence, or a run's folder without a policy leads to a library."""
    run = tmp_path / "run"
    code, _, err = command("train", "mini", "--track", "tensorboard", "--steps", "2", *models, *SMALL,
                           "--base-every", "1", "--out", str(run))  # fmt: skip
    assert code == 0, err
    assert list((run / "tracking").rglob("events.out.*"))
    assert all("base" in line and "headroom" not in line for line in numbers(run))
    shutil.rmtree(run / "policy")
    small = ["-n", "1", "--steps", "4", "--refinements", "2", "--out", str(tmp_path / "out")]
    code, _, err = command("generate", "a star", "--policy", str(run), "--backbone", models[1], *small)
    assert code == 2 and "has not ended" in err and "--resume" in err
    newest = str(run / "checkpoints" / "000002")
    code, _, err = command("generate", "a star", "--policy", newest, "--backbone", models[1], *small)
    assert code == 0, err


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

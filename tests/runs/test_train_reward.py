"""Rewards learned from the command line: a gallery, choices between its images, a direction, their use."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_training import start, train, updates_done

SMALL = ["--members", "mini-turbo", "--images", "2", "--queries", "21", "--held-out", "0.3", "--batch", "8",
         "--pairs-per-part", "4", "--look-every", "5", "--save-every", "3"]  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 updates."""
    run = tmp_path_factory.mktemp("reward") / "run"
    code, out, err = train("mini-reward", "--steps", "12", "--out", str(run), *SMALL)
    assert code == 0, err
    assert "12 updates, accuracy" in out and f"--reward pickscore:{run}" in out
    return run


def test_a_killed_run_goes_on_to_the_same_reward(learned: Path, tmp_path: Path) -> None:
    """Fails if the gallery is drawn anew, or the average of the weights is lost."""
    run = tmp_path / "run"
    process = start("mini-reward", "--steps", "12", "--out", str(run), *SMALL)
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline and updates_done(run) < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and updates_done(run) < 12
    code, _, err = train("mini-reward", "--resume", "--out", str(run))
    assert code == 0, err
    a, b = (load_file(r / "reward" / "model.safetensors") for r in (learned, run))
    assert a.keys() == b.keys() and all(bool((a[k] == b[k]).all()) for k in a)


def test_the_reward_is_used_by_name(learned: Path, command: Callable[..., Any]) -> None:
    """The run's folder and the one in it are the same reward. Fails if it cannot be read as PickScore."""
    image = sorted((learned / "gallery").glob("*.png"))[0]
    values = []
    for where in (learned, learned / "reward"):
        code, out, err = command("score", str(image), "--prompt", "a red star", "--json", "--reward",
                                 f"pickscore:{where}")  # fmt: skip
        assert code == 0, err
        values.append([*json.loads(out)[0]["rewards"].values()])
    assert values[0] == values[1]
    assert "| accuracy |" in (learned / "README.md").read_text()


def test_it_is_learned_further_and_corrected(
    learned: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """Iteration from its own pairs, another judge on its gallery, and a direction; each is then a reward.
    Fails if a run's folder is not taken for what it has trained.
    """
    more, spatial, moved = (str(tmp_path / name) for name in ("more", "spatial", "moved"))
    sizes = ["--batch", "4", "--pairs-per-part", "4", "--look-every", "2", "--held-out", "0.3"]
    code, _, err = train("reward", "--reward", f"pickscore:{learned}", "--pairs",
                         str(learned / "pairs.jsonl"), "--steps", "2", "--out", more, *sizes)  # fmt: skip
    assert code == 0, err
    code, _, err = train("mini-reward", "--judge", "oracle-attributes", "--gallery", str(learned), "--steps",
                         "2", "--out", spatial, *sizes)  # fmt: skip
    assert code == 0 and not (tmp_path / "spatial" / "gallery").exists(), err
    code, out, err = train("d2-align", "--reward", f"pickscore:{more}", "--images", str(learned), "--steps",
                           "4", "--batch", "8", "--out", moved)  # fmt: skip
    assert code == 0 and f"--reward d2-align:{moved}" in out, err
    image = sorted((learned / "gallery").glob("*.png"))[0]
    names = [f"pickscore:{more}", f"pickscore:{spatial}", f"d2-align:{moved}"]
    code, out, err = command("score", str(image), "--prompt", "a red star", "--json",
                             *(word for name in names for word in ("--reward", name)))  # fmt: skip
    assert code == 0 and len(set(json.loads(out)[0]["rewards"].values())) == 3, err


def test_what_is_no_reward_yet_is_told(learned: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    """One sentence each."""
    run = tmp_path / "run"
    shutil.copytree(learned, run, ignore=shutil.ignore_patterns("reward", "checkpoints", "gallery"))
    image = sorted((learned / "gallery").glob("*.png"))[0]
    scored = ["score", str(image), "--prompt", "a red star", "--reward"]
    for words, says in (
        ([*scored, f"pickscore:{run}"], "has not ended, so it has no reward yet"),
        ([*scored, f"d2-align:{learned}/reward"], "no direction in"),
        ([*scored, "d2-align"], "give d2-align:RUN"),
        (["generate", "a", "--policy", str(learned), "--out", str(tmp_path / "o")], "trained a reward"),
        (["train", "mini-reward", "--members", "mini-turbo,mini-turbo", "--out", "x"], "has one twice"),
        (["train", "mini-reward", "--members", "mini-turb", "--out", "x"], "no backbone 'mini-turb'"),
        (["train", "mini-reward", "--judge", "rank(oracle)", "--out", "x"], "compares the images"),
        (["train", "mini-reward", "--gallery", str(tmp_path), "--out", "x"], "holds no gallery"),
        (["train", "d2-align", "--images", "nowhere", "--out", "x"], "give a .jsonl or .csv"),
        (["train", "reward", "--pairs", "nowhere.jsonl", "--out", "x"], "no file nowhere.jsonl"),
        (["train", "reward", "--pears", "a", "--out", "x"], "did you mean 'pairs'"),
    ):  # fmt: skip
        code, _, err = command(*words)
        assert code == 2 and says in err and "Traceback" not in err, (words, err)
    assert not Path("x").exists()

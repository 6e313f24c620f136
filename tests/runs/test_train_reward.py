"""Rewards learned from the command line: a gallery, choices between its images, a direction, their use."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_training import start, updates_done

from promptloop.recipes import choices, training
from promptloop.recipes.images import read
from promptloop.recipes.rewards import reward_named
from promptloop.recipes.training import settings_given

SMALL = ["--members", "mini-turbo", "--images", "2", "--queries", "21", "--held-out", "0.3", "--batch", "8",
         "--pairs-per-part", "4", "--look-every", "5", "--save-every", "3"]  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 updates."""
    run = tmp_path_factory.mktemp("reward") / "run"
    given = settings_given(["--steps", "12", *SMALL])
    told = training.run("mini-reward", given, run, resume=False)
    assert "12 updates, accuracy" in told and f"--reward pickscore:{run}" in told
    return run


def test_the_accuracy_is_the_saved_reward_s_on_what_was_held_out(learned: Path) -> None:
    """Fails if the log looks at the pairs learned from, or at other weights than those that are saved."""
    held = choices.parted(choices.choices_in(learned / "pairs.jsonl"), 0.3, 0)[1]
    reward = reward_named(f"pickscore:{learned}")
    right = []
    for choice in held:
        pair = torch.stack([read(Path(name)) for name in (choice.chosen, choice.rejected)])
        values = reward(pair, [choice.prompt] * 2)
        right.append(float(values[0] > values[1]))
    last = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    config = json.loads((learned / "config.json").read_text())
    assert set(config["loaded"]) == {"reward", "member mini-turbo"}


def test_a_stopped_and_killed_run_goes_on_to_the_same_reward(
    learned: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """Stopped while it drew, then killed while it trained. Fails if the next command takes the folder for
    somebody else's, the gallery is drawn anew, or the average of the weights is lost.
    """
    run = tmp_path / "run"
    process = start("mini-reward", "--steps", "12", "--out", str(run), *SMALL)
    until(process, lambda: bool([*run.glob("gallery/*.png")]))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "which are kept: go on by --resume" in err, err
    code, _, err = command("train", "mini-reward", "--steps", "12", "--out", str(run), *SMALL)
    assert code == 2 and "give --resume to go on with it, or another --out" in err
    process = start("mini-reward", "--resume", "--out", str(run))
    until(process, lambda: updates_done(run) >= 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and updates_done(run) < 12
    drawn = {file: file.stat().st_mtime_ns for file in (run / "gallery").iterdir()}
    code, _, err = command("train", "mini-reward", "--resume", "--out", str(run))
    assert code == 0, err
    assert drawn == {file: file.stat().st_mtime_ns for file in (run / "gallery").iterdir()}
    a, b = (load_file(r / "reward" / "model.safetensors") for r in (learned, run))
    assert a.keys() == b.keys() and all(bool((a[k] == b[k]).all()) for k in a)


def until(process: subprocess.Popen, done: Callable[[], bool]) -> None:
    """Waits until it is so, or the process has ended."""
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline and not done():
        time.sleep(0.01)


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
    pairs = str(learned / "pairs.jsonl")
    code, _, err = command("train", "reward", "--reward", f"pickscore:{learned}", "--pairs", pairs,
                           "--steps", "2", "--seed", "1", "--out", more, *sizes)  # fmt: skip
    assert code == 0 and "was trained with seed 0 and held_out 0.3, this run has 1" in err, err
    config = json.loads((tmp_path / "more" / "config.json").read_text())
    assert config["in_force"]["layers"] == 2  # of three in each tower the last: --frozen 0.7
    code, _, err = command("train", "mini-reward", "--judge", "oracle-attributes", "--gallery",
                           str(learned), "--steps", "2", "--out", spatial, *sizes)  # fmt: skip
    assert code == 0 and not (tmp_path / "spatial" / "gallery").exists(), err
    code, out, err = command("train", "d2-align", "--reward", f"pickscore:{more}", "--images",
                             str(learned), "--steps", "4", "--batch", "8", "--omega", "2",
                             "--out", moved)  # fmt: skip
    assert code == 0 and f"--reward d2-align:{moved}" in out, err
    assert json.loads((tmp_path / "moved" / "reward" / "direction.json").read_text())["omega"] == 2
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


@pytest.mark.parametrize("recipe", ["reward", "d2-align"])
def test_other_images_are_noticed_when_a_run_goes_on(
    recipe: str, learned: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """A row less, or another picture under a name. Fails where only the list's own bytes are compared, or
    the error is another's.
    """
    shutil.copytree(learned / "gallery", tmp_path / "gallery")
    shutil.copy(learned / "pairs.jsonl", tmp_path)
    setting, file = {
        "reward": ("--pairs", tmp_path / "pairs.jsonl"),
        "d2-align": ("--images", tmp_path / "gallery" / "images.jsonl"),
    }[recipe]
    run, sizes = tmp_path / "run", ["--held-out", "0.3"] if recipe == "reward" else []
    code, _, err = command("train", recipe, "--reward", "pickscore:" + str(learned), setting, str(file),
                           "--steps", "2", "--batch", "4", "--out", str(run), *sizes,
                         *(["--pairs-per-part", "4"] if recipe == "reward" else []))  # fmt: skip
    assert code == 0, err
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(True)[:-1]))
    code, _, err = command("train", recipe, "--resume", "--out", str(run))
    assert code == 2 and f"{file} no longer holds what {run} was begun with" in err
    file.write_text(whole)
    named = json.loads(whole.splitlines()[0])
    Image.new("RGB", (64, 64)).save(file.parent / named.get("chosen", named.get("image")))
    code, _, err = command("train", recipe, "--resume", "--out", str(run))
    assert code == 2 and f"{file} no longer holds what {run} was begun with" in err

"""promptloop score, and rewards served to it, as a user types them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_reward import brightness

from promptloop.recipes import scoring
from promptloop.recipes.images import read
from promptloop.recipes.rewards import reward_named
from promptloop.recipes.scoring import score

QUERIES = ("a red star", "two blue discs", "a jade star")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, of two sizes, whose names are not in the order they were made in."""
    out = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name, side in (("b.png", 64), ("a.png", 64), ("c.webp", 32)):
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out / name, lossless=True)
    (out / "prompts.txt").write_text("".join(f"{q}\n" for q in QUERIES))
    rows = [("c.webp", QUERIES[2]), ("a.png", QUERIES[0]), ("b.png", QUERIES[1])]
    lines = [json.dumps({"image": n, "prompt": q}) + "\n" for n, q in rows]
    (out / "prompts.jsonl").write_text("".join(lines))
    (out / "prompts.csv").write_text("prompt,image\n" + "".join(f'"{q}",{n}\n' for n, q in rows))
    return out


def test_a_folder_and_its_prompts(command: Callable[..., Any], folder: Path) -> None:
    """JSON and the table against the rewards themselves. Fails when images and prompts change places, sizes
    are mixed into one batch, or a rank is taken within a batch.
    """
    said = "rank(2*tiny_reward:brightness) if oracle>=0 else -9"
    arguments = ["--reward", "oracle-strict", "--reward", said, "--device", "cpu"]
    given = [str(folder), "--prompts", str(folder / "prompts.txt"), *arguments]
    with pytest.raises(ValueError, match="32"):  # the oracle reads images of 64 pixels; the file is named
        score([folder], ["oracle"], prompts=QUERIES)
    given[0:1] = [str(folder / "a.png"), str(folder / "b.png")]
    code, out, err = command("score", *given, "--json")
    assert code == 2 and "3 prompts for 2 images" in err
    files = [folder / "a.png", folder / "b.png"]
    code, out, err = command("score", *map(str, files), "--prompt", "a red star", *arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    images = torch.stack([read(file) for file in files])
    wanted = reward_named("oracle")(images, ["a red star"] * 2)
    bright = brightness(images, [])
    assert [row["image"] for row in found] == list(map(str, files))
    assert [row["terms"][said]["oracle"] for row in found] == pytest.approx(wanted.tolist())
    assert [row["rewards"][said] for row in found] == (2 * torch.sign(bright - bright.flip(0))).tolist()
    code, out, err = command("score", *map(str, files), "--prompt", "a red star", *arguments, "--batch", "1")
    lines = out.splitlines()
    assert (
        code == 0
        and len(lines) == 4
        and re.split(r"  +", lines[0].strip())[:3] == ["image", "prompt", "oracle-strict"]
    )
    assert lines[1].split()[0] == str(files[0]) and lines[3].startswith("mean")
    assert float(lines[1].split()[-1]) == pytest.approx(float(bright[0]), abs=1e-4)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "prompts.csv"])
def test_lists_of_prompts(folder: Path, name: str) -> None:
    """Fails when a list's order or a folder's is taken for the other."""
    bright = "tiny_reward:brightness"
    rows = score([folder], [bright], listed=folder / name)
    assert {Path(row.image).name: row.prompt for row in rows} == dict(
        zip(("a.png", "b.png", "c.webp"), QUERIES, strict=True)
    )
    for row in rows:
        assert row.rewards[bright] == pytest.approx(
            float(brightness(read(Path(row.image))[None], [])), abs=1e-6
        )
    if name != "prompts.txt":
        assert [row.image for row in score([], [bright], listed=folder / name)] == [row.image for row in rows]


def test_what_cannot_be_scored(folder: Path, tmp_path: Path) -> None:
    """Fails when one of these is passed over, or is found out only after a reward was loaded."""
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "clear.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "short.jsonl").write_text('{"image": "a.png", "prompt": "x"}\n')
    (tmp_path / "other.csv").write_text("file,prompt\na.png,x\n")
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "cut.csv").write_text("image,prompt\na.png,a red cube, on a table\n")
    for arguments, says in (
        ({"images": [folder], "prompts": ["a", "b"]}, "2 prompts for 3 images"),
        ({"images": [folder]}, "give --prompt TEXT or --prompts FILE"),
        ({"images": [tmp_path / "gone.png"], "prompts": ["a"]}, "there is no image"),
        ({"images": [], "prompts": ["a"]}, "no image is named"),
        ({"images": [tmp_path / "text.png"], "prompts": ["a"]}, "cannot be read as an image"),
        ({"images": [tmp_path / "clear.png"], "prompts": ["a"]}, "transparent in parts"),
        ({"images": [tmp_path / "deep.png"], "prompts": ["a"]}, "mode I;16"),
        ({"images": [folder], "listed": tmp_path / "gap.txt"}, "line 2 of"),
        ({"images": [folder], "listed": tmp_path / "short.jsonl"}, "has no prompt for b.png"),
        ({"images": [], "listed": tmp_path / "short.jsonl"}, "which is no file"),
        ({"images": [folder], "listed": tmp_path / "other.csv"}, "has no 'image'"),
        ({"images": [folder], "listed": tmp_path / "bad.jsonl"}, "is no JSON"),
        ({"images": [folder], "listed": tmp_path / "cut.csv"}, "put a prompt with a comma in double quotes"),
        ({"images": [folder], "listed": folder / "prompts.md"}, "prompts are read from"),
        ({"images": [folder / "a.png"], "prompts": ["a"], "rewards": ["orcale"]}, "did you mean 'oracle'"),
        ({"images": [folder / "a.png"], "prompts": ["a"], "rewards": []}, "which reward?"),
        (
            {"images": [folder / "a.png"], "prompts": ["x"], "rewards": ["tiny_reward:broken"]},
            "a.png ('x') is nan",
        ),
    ):
        given: dict[str, Any] = {"rewards": ["tiny_reward:brightness"], **arguments}
        with pytest.raises(ValueError) as refused:
            score(**given)
        assert says in str(refused.value), (says, str(refused.value))
    assert "mean" not in scoring.table(score([folder / "a.png"], ["tiny_reward:brightness"], prompts=["a"]))


def test_served_from_the_command_line(command: Callable[..., Any], folder: Path) -> None:
    """`serve-rewards` tells how its reward is named, `score` asks it, SIGTERM ends it. Fails when a process
    is left, or the server's values are others.
    """
    server = subprocess.Popen(
        [sys.executable, "-m", "promptloop", "serve-rewards", "oracle", "--port", "0", "--device", "cpu"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        said = [server.stderr.readline() for _ in range(2)]
        name = said[1].removeprefix("ready: --reward ").strip()
        assert name.endswith("#oracle"), said
        image = str(folder / "a.png")
        given = [
            "--prompt",
            "a red star",
            "--reward",
            "oracle",
            "--reward",
            name,
            "--device",
            "cpu",
            "--json",
        ]
        code, out, err = command("score", image, *given)
        assert code == 0, err
        values = json.loads(out)[0]["rewards"]
        assert values["oracle"] == values[name]
    finally:
        server.terminate()
        rest = server.communicate(timeout=20)[1]
    assert "ended" in rest and "Traceback" not in rest and server.returncode == 0


def test_a_folder_that_generate_wrote(tmp_path: Path) -> None:
    """Fails when a filmstrip is scored as an image."""
    for name in ("00.png", "00-base.png", "00-filmstrip.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "trace.json").write_text("{}")
    assert [file.name for file in scoring.files_of([tmp_path])] == ["00-base.png", "00.png"]

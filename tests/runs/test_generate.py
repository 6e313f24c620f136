"""The main job from end to end, on tiny random models of the real classes."""

import inspect
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import HeunDiscreteScheduler
from PIL import Image
from tiny_runs import QUICK

import promptloop
from promptloop import cli
from promptloop.policies.contract import Request
from promptloop.policies.fixed import Fixed
from promptloop.recipes.job import Job
from promptloop.recipes.report import summary
from promptloop.recipes.shot import digest


def test_the_folder_holds_everything(folder: Path) -> None:
    names = {file.name for file in folder.iterdir()}
    images = {f"0{i}{kind}.png" for i in (0, 1) for kind in ("", "-base", "-filmstrip")}
    assert names == images | {"trace.json", "trace.html"}
    trace = json.loads((folder / "trace.json").read_text())
    assert trace["environment"]["threads"] == torch.get_num_threads()
    assert trace["refinement_steps"] == [0, 1, 2] and len(trace["backbone"]["levels"]) == 5
    assert re.fullmatch(r"[0-9a-f]{64}", trace["backbone"]["sha256"])
    assert {"load", "policy", "denoise", "decode", "write"} <= set(trace["seconds"])
    for sample in trace["samples"]:
        assert len(sample["image"]["drafts"]) == 3 and sample["not_scored"]
        for side in ("image", "base"):
            stored = np.asarray(Image.open(folder / sample[side]["file"]))
            assert digest(stored) == sample[side]["sha256"]


def test_the_page_needs_nothing_else_and_escapes_texts(folder: Path) -> None:
    page = (folder / "trace.html").read_text()
    assert "a red &lt;b&gt;circle" in page and "<b>circle" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)
    assert len(re.findall("<figure", page)) == 2 * 2 * 4


def test_a_policy_that_repeats_the_prompt_leaves_the_base_images(backbone: str) -> None:
    """Fails if refined and base run differ in anything but the policy: noise, guidance, batches."""
    settings = {**QUICK, "backbone": backbone}
    made = promptloop.generate("a star", policy="promptloop.policies:Identity", compare=True, **settings)
    alone = promptloop.generate("a star", policy="none", **settings)
    assert made.base is not None
    assert torch.equal(made.images, made.base) and torch.equal(made.images, alone.images)
    assert alone.trace["policy"] is None and alone.base is None


def test_open_loop_shows_the_policy_no_image(backbone: str) -> None:
    seen: list[bool] = []

    class Peeking(Fixed):
        def answer(self, request: Request, rng: random.Random) -> str:
            seen.append(request.estimate is not None)
            return request.prompt

    for open_loop in (True, False):
        promptloop.generate("a star", backbone=backbone, policy=Peeking(), open_loop=open_loop, **QUICK)
    assert seen == [False] * 6 + [False] * 2 + [True] * 4


def test_several_queries_and_seeds(backbone: str) -> None:
    made = promptloop.generate(["a star", "a circle"], backbone=backbone, policy="none", seed=5, **QUICK)
    assert [(shot.query, shot.seed) for shot in made.shots] == [
        ("a star", 5), ("a star", 6), ("a circle", 5), ("a circle", 6),
    ]  # fmt: skip
    assert tuple(made.images.shape) == (4, 3, 16, 16)


BAD = {
    "unknown command": (["genrate"], "Did you mean 'generate'"),
    "unknown option": (["generate", "a", "--sed", "1"], "--seed"),
    "no output folder": (["generate", "a"], "Missing option '--out'"),
    "not a number": (["generate", "a", "--out", "OUT", "-n", "four"], "-n"),
    "no samples": (["generate", "a", "--out", "OUT", "-n", "0"], "n is 0; it must be at least 1"),
    "no query": (["generate", " ", "--out", "OUT"], "the query is empty"),
    "mistyped backbone": (
        ["generate", "a", "--out", "OUT", "--backbone", "mini-unit"],
        "did you mean 'mini-unet'",
    ),
    "mistyped policy": (
        ["generate", "a", "--out", "OUT", "--backbone", "SD", "--policy", "nome"],
        "did you mean 'none'",
    ),
    "policy as backbone": (
        ["generate", "a", "--out", "OUT", "--backbone", "mini-vlm"],
        "cannot be the backbone",
    ),
    "too many refinements": (
        ["generate", "a", "--out", "OUT", "--steps", "3", "--refinements", "5"],
        "5 refinements do not fit",
    ),
    "window": (["generate", "a", "--out", "OUT", "--window", "0.9", "0.1"], "window"),
    "device": (["generate", "a", "--out", "OUT", "--device", "abacus"], "abacus"),
    "full folder": (["generate", "a", "--out", "FULL"], "is not empty"),
    "foreign folder": (["generate", "a", "--out", "FULL", "--overwrite"], "no run of promptloop wrote"),
    "no pipeline": (["generate", "a", "--out", "OUT", "--backbone", "FULL"], "model_index.json"),
    "no chat model": (
        ["generate", "a", "--out", "OUT", "--backbone", "SD", "--policy", "FULL"],
        "config.json",
    ),
    "long query": (["generate", "a star " * 800, "--out", "OUT"], "at most 4000"),
    "no trace": (["replay", "OUT"], "there is no trace"),
    "not a trace": (["replay", "FULL/mine.txt"], "is not JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(
    case: str, tmp_path: Path, backbone: str, command: Callable[..., Any]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    places = {"OUT": str(tmp_path / "out"), "FULL": str(tmp_path / "full"), "SD": backbone}
    arguments, expected = BAD[case]
    code, out, err = command(
        *[re.sub(r"^(OUT|FULL|SD)\b", lambda m: places[m[1]], word) for word in arguments]
    )
    assert code == 2 and not out, (code, out, err)
    assert expected in err and err.startswith("promptloop: ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and (tmp_path / "full" / "mine.txt").exists()


def test_a_policy_of_the_users_own(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    """`module:name` is found beside the user; a wrong one is a sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = "from promptloop.policies import Template\nloud = lambda: Template('A {query}!')\nnumber = 3\n"
    Path("own_prompts.py").write_text(text)
    common = ["generate", "a star", "--backbone", backbone, "--steps", "2", "--refinements", "1", "-n", "1"]
    code, _, err = command(*common, "--out", "out", "--policy", "own_prompts:loud")
    assert code == 0, err
    assert (
        json.loads(Path("out/trace.json").read_text())["samples"][0]["image"]["drafts"][0]["prompt"]
        == "A a star!"
    )
    for name, reason in {
        "number": "is a int",
        "missing": "cannot be imported",
        "Template": "without arguments",
    }.items():
        code, _, err = command(*common, "--out", "out2", "--policy", f"own_prompts:{name}")
        assert code == 2 and reason in err and err.count("\n") == 1


def test_debug_shows_the_traceback(command: Callable[..., Any]) -> None:
    assert "Traceback" in command("replay", "nowhere", "--debug")[2]


def test_overwrite_replaces_an_earlier_run(backbone: str, tmp_path: Path) -> None:
    settings = {"backbone": backbone, "policy": "none", "out": tmp_path, "steps": 2, "refinements": 1}
    promptloop.generate("a star", n=2, **settings)
    with pytest.raises(ValueError, match="not empty"):
        promptloop.generate("a star", n=1, **settings)
    promptloop.generate("a star", n=1, overwrite=True, **settings)
    assert not (tmp_path / "01.png").exists() and (tmp_path / "00.png").exists()


def test_the_settings_of_the_function_are_those_of_the_job_and_the_command() -> None:
    """Fails if a setting is added to the job but cannot be given."""
    fields = set(Job.__dataclass_fields__) - {"queries"} | {"query", "out", "overwrite"}
    for function, extra in ((promptloop.generate, {"progress"}), (cli.generate, set())):
        assert set(inspect.signature(function).parameters) == fields | extra


def test_a_query_that_is_cut_is_told(backbone: str, policy: str, tmp_path: Path) -> None:
    """Fails when the text encoder cuts a query and nobody says so."""
    long = "star " * 300
    made = promptloop.generate(
        [long, "a star"], backbone=backbone, policy=policy, out=tmp_path / "out", **QUICK
    )
    assert list(made.trace["cut_queries"]) == [long]
    assert "its end is not seen" in summary(made)


def test_policy_none_needs_no_room_for_refinements(backbone: str) -> None:
    made = promptloop.generate("a star", backbone=backbone, policy="none", n=1, steps=2, refinements=9)
    assert made.trace["refinement_steps"] == []


def test_a_scheduler_of_two_stages_is_refined_at_its_own_steps(policy: str, tmp_path: Path) -> None:
    """Fails when frames are kept at the steps asked for and not at those the loop makes of them."""
    pipe = tiny.sd()
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    backbone = str(tiny.saved(pipe, tmp_path / "heun"))
    made = promptloop.generate("a star", backbone=backbone, policy=policy, **{**QUICK, "n": 1})
    assert len(made.trace["backbone"]["levels"]) > QUICK["steps"] + 1
    picture = made.shots[0].picture
    assert [n.step for n in picture.notes] == [f.step for f in picture.frames]
    assert [n.step for n in picture.notes] == made.trace["refinement_steps"]

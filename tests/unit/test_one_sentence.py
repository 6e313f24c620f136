"""What once was another library's exception is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_vlm
import torch

from promptloop import Endpoint, attach, load, load_policy
from promptloop.controls import CFG
from promptloop.denoisers import from_pipeline
from promptloop.policies.contract import Request
from promptloop.policies.fixed import Identity
from promptloop.policies.message import read
from promptloop.recipes.prompts import prompts_from
from promptloop.recipes.training import run
from promptloop.sample import sample


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    folder = tiny.saved(tiny.sd(), tmp_path)
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
        load(folder, device="cuda")


def test_wrong_kinds() -> None:
    """Fails if Python's own TypeError comes through."""
    pipe, odd = tiny.sd(), dict[str, Any](size="64", retries=1.5, timeout="5", seeds=3, prompt=None)
    loop = attach(pipe, Identity())
    for make, said in (
        (lambda: load(""), "path is empty"),
        (lambda: from_pipeline(pipe, size=odd["size"]), "size is '64'"),
        (lambda: Endpoint("http://h/v1", "m", retries=odd["retries"]), "retries is 1.5"),
        (lambda: Endpoint("http://h/v1", "m", timeout=odd["timeout"]), "timeout is '5'"),
        (lambda: loop("a", seeds=odd["seeds"]), "seeds is 3; give a list"),
        (lambda: loop(odd["prompt"]), "give a text or a list"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


def test_a_policy_by_its_path(tmp_path: Path) -> None:
    """Fails if a Path is no name."""
    folder = Path(tiny_vlm.build("idefics3", tmp_path))
    drafts = [load_policy(where).write([Request("a ring", "a ring")], [0]) for where in (folder, str(folder))]
    assert drafts[0][0].text == drafts[1][0].text


def test_thoughts_are_no_prompt() -> None:
    """Fails if a model's thoughts, or half a character, reach the text encoder."""
    request = Request("a ring", "a ring")
    assert read(request, "<think>first\nthis</think>\na gold ring") == ("a gold ring", None)
    assert read(request, "<think>and so on") == ("a ring", "unparsable")
    assert read(request, "a ring \ud83d of gold") == ("a ring", "unparsable")


def test_controls_are_a_list_of_controls() -> None:
    """Fails where the first step is the first to notice."""
    denoiser, given = from_pipeline(tiny.sd()), dict[str, Any](seeds=[0], steps=2)
    for controls, said in (
        (CFG(2.0), "one CFG; give a list"),
        (["x"], "'x' among the controls is no control"),
    ):
        with pytest.raises(ValueError, match=said):
            sample(denoiser, ["a"], controls=controls, **given)  # type: ignore[arg-type]


def test_two_guidances_of_the_same_steps() -> None:
    """Fails if the second meets a batch twice as large; windows apart are no matter."""
    denoiser, given = from_pipeline(tiny.sd()), dict[str, Any](seeds=[0], steps=2)
    with pytest.raises(ValueError, match="would guide the same steps; list one of them"):
        sample(denoiser, ["a"], controls=[CFG(2.0), CFG(3.0, window=(0.5, 1.0))], **given)
    sample(denoiser, ["a"], controls=[CFG(2.0, window=(0.0, 0.5)), CFG(3.0, window=(0.5, 1.0))], **given)


@pytest.mark.parametrize("name", ["", "  "])
def test_prompts_without_a_name(name: str) -> None:
    """Fails where the empty name is a folder's (the current one)."""
    with pytest.raises(ValueError, match="prompts is empty; give a file"):
        prompts_from(name)


def test_a_run_that_is_there_is_told_before_its_data(tmp_path: Path) -> None:
    """Fails if the prompts are looked for first."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds a run; give --resume"):
        run("mini", {"prompts": "nowhere.txt"}, tmp_path, resume=False)

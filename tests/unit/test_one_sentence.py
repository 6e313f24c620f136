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

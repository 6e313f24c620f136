"""The examples of docs/models.md run as they stand, with tiny pipelines where the published ones would be."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_vlm
from tiny_server import say, serving

from promptloop.denoisers import FAMILIES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
POLICY = "Qwen/Qwen2.5-VL-3B-Instruct"
PIPELINES: dict[str, Callable[[], Any]] = {
    "stabilityai/stable-diffusion-xl-base-1.0": tiny.sdxl,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": tiny.sd,
    "stabilityai/stable-diffusion-3.5-medium": tiny.sd3,
}
FLUX = "FluxPipeline" in FAMILIES and importlib.util.find_spec("tiny_more") is not None


def blocks(section: str, language: str) -> list[str]:
    """The code blocks under one heading."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the hub ids of the page are folders."""
    root = tmp_path_factory.mktemp("hub")
    for name, make in PIPELINES.items():
        tiny.saved(make(), root / name)
    if FLUX:
        import tiny_more

        tiny.saved(tiny_more.flux(), root / "black-forest-labs" / "FLUX.1-dev")
    tiny_vlm.build("qwen2_5_vl", root / POLICY)
    return root


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, "models.md", "exec"), names)
    return names


@pytest.mark.parametrize("block", blocks("In your own pipeline", "python"))
def test_in_your_own_pipeline(block: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines do it: the pipeline, `attach`, the call."""
    monkeypatch.chdir(place)
    if "Flux" in block:
        if not FLUX:
            pytest.skip("FLUX is not among the backbones here")
        assert run(block.replace("size=1024", "size=16").replace("steps=28", "steps=4"))[
            "made"
        ].images.shape == (1, 3, 16, 16)
        return
    made = run(re.sub(r"steps=\d+", "steps=8", block))["made"]
    assert len(made.images) == len(made.drafts) and {len(row) for row in made.drafts} <= {3, 5}
    assert {draft.request.estimate is None for row in made.drafts for draft in row[1:]} == {False}


def test_the_page_has_an_example_for_each_family() -> None:
    page = "\n".join(blocks("In your own pipeline", "python"))
    assert all(name in page for name in (*PIPELINES, "FluxPipeline", POLICY))


def test_a_server_as_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    """The shell block, its replay (the server gone), and the Python block, at an address of this machine."""
    monkeypatch.chdir(tmp_path)
    (shell,), (python,) = blocks("A server as policy", "sh"), blocks("A server as policy", "python")
    generate, replay = (shlex.split(line)[1:] for line in shell.splitlines())
    with serving(say("a big blue star")) as server:
        address = server.url.removeprefix("http://").removesuffix("/v1")
        made = run(python.replace("127.0.0.1:8000", address))["made"]
        assert made.images.shape == (1, 3, 64, 64)
        code, _, err = command(*(word.replace("127.0.0.1:8000", address) for word in generate))
        assert code == 0, err
        assert {sent["model"] for _, _, sent in server.seen} == {POLICY}
    code, out, err = command(*replay)
    assert code == 0 and "not asked again" in out, err

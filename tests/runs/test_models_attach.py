"""The examples of docs/models.md run as they stand, with tiny pipelines where the published ones would be."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_more
import tiny_vlm
from tiny_server import say, serving

from promptloop.controls.attach import OUT_OF_REACH, TENSORS
from promptloop.denoisers import FAMILIES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
POLICY = "Qwen/Qwen2.5-VL-3B-Instruct"
PIPELINES: dict[str, Callable[[], Any]] = {
    "stabilityai/stable-diffusion-xl-base-1.0": tiny.sdxl,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": tiny.sd,
    "stabilityai/stable-diffusion-3.5-medium": tiny.sd3,
    "Tongyi-MAI/Z-Image-Turbo": tiny_more.z_image,
    "black-forest-labs/FLUX.1-dev": tiny_more.flux,
    "Qwen/Qwen-Image": tiny_more.qwen_image,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": tiny_more.pixart,
}
FLUX = ("FluxPipeline", "black-forest-labs/FLUX.1-dev")  # in the example of a pipeline put into our loop
IN_OUR_LOOP = [FLUX, ("QwenImagePipeline", "Qwen/Qwen-Image"),
               ("PixArtSigmaPipeline", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS")]  # fmt: skip


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
    tiny_vlm.build("qwen2_5_vl", root / POLICY)
    return root


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    block = block.replace('"cuda"', '"cpu"')
    exec(compile(block, "models.md", "exec"), names)
    return names


EXAMPLES = blocks("In your own pipeline", "python")


@pytest.mark.parametrize("block", [block for block in EXAMPLES if "attach" in block])
def test_in_your_own_pipeline(block: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines do it: the pipeline, `attach`, the call."""
    monkeypatch.chdir(place)
    made = run(re.sub(r"steps=\d+", "steps=8", block.replace("1024", "64")))["made"]
    assert len(made.images) == len(made.drafts) and {len(row) for row in made.drafts} <= {3, 5}
    assert {draft.request.estimate is None for row in made.drafts for draft in row[1:]} == {False}


@pytest.mark.parametrize("names", IN_OUR_LOOP, ids=[name for name, _ in IN_OUR_LOOP])
def test_in_our_loop(names: tuple[str, str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipelines that `attach` refuses, by the lines that the page has for them."""
    monkeypatch.chdir(place)
    (block,) = [block for block in EXAMPLES if "from_pipeline" in block]
    for before, after in zip(FLUX, names, strict=True):
        assert before in block
        block = block.replace(before, after)
    made = run(block.replace("size=1024", "size=16").replace("steps=28", "steps=4"))["made"]
    assert made.images.shape == (1, 3, 16, 16)


def test_the_page_has_an_example_for_each_family() -> None:
    """Fails for a family that is neither attached nor refused by name, or of which the page says nothing."""
    section = PAGE.partition("\n## In your own pipeline\n")[2].partition("\n## ")[0]
    for name in FAMILIES:
        assert (name in TENSORS) != (name in OUT_OF_REACH), name
        assert f"{name}.from_pretrained(" in section if name in TENSORS else name in section, name
    assert {name for name, _ in IN_OUR_LOOP} == {*FAMILIES} & {*OUT_OF_REACH}
    for block in EXAMPLES:  # at full size nobody wants them in float32 on the CPU
        assert block.count("dtype=torch.bfloat16") == block.count('"cuda"') == 2 and POLICY in block


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

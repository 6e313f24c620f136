"""The examples of "LoRAs, memory, schedulers" in docs/models.md run, on tiny folders of those names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_loras

TITLE = "## LoRAs, memory, schedulers\n"
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
SECTION = re.split(r"^## ", PAGE.partition(TITLE)[2], flags=re.MULTILINE)[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which a reader has the pipeline and the LoRAs of the page."""
    pipe = tiny.sd()
    tiny.saved(pipe, tmp_path / "sd15")
    tiny_loras.write(pipe, tmp_path / "ink", "peft", seed=1)
    (made,) = tiny_loras.write(pipe, tmp_path / "made", "diffusers", seed=2).glob("*.safetensors")
    made.rename(tmp_path / "soft.safetensors")
    monkeypatch.chdir(tmp_path)


def test_python_examples(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a name of the page is not there, or the comment on what is printed is wrong."""
    names: dict[str, Any] = {}
    assert len(blocks("python")) == 3
    for block in blocks("python"):
        exec(compile(block, "models.md", "exec"), names)
    assert "{'ink': 0.8, 'soft': 0.5}" in capsys.readouterr().out
    images = [names[name].images for name in ("both", "ink", "plain")]
    assert all(a.shape == (1, 3, 16, 16) for a in images)
    assert min((a - b).abs().max() for a, b in zip(images, images[1:], strict=False)) > 0.01


def test_commands(here: None, command: Callable[..., Any]) -> None:
    """Fails if an option of the page is called otherwise."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        code, _, err = command(*shlex.split(line)[1:])
        assert code == 0, err

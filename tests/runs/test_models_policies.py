"""The examples of docs/models.md on policies and vLLM rollouts, with tiny models for the published ones."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
from stand_in_vllm import stand_in
from tiny_training import numbers

from benchmarks.policy_sizes import PUBLISHED, configs, counted, row

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
POLICY = "Qwen/Qwen2.5-VL-3B-Instruct"
SMALL = shlex.split(
    "--steps 1 --queries 2 --group 2 --denoising-steps 2 --refinements 1 --window '0 1' --base-every 0 "
    "--reward tiny_reward:brightness --gold none --max-new-tokens 4 --sheet-every 0 --noise fresh"
)


def blocks(section: str, language: str) -> list[str]:
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the hub id of the page is a folder."""
    root = tmp_path_factory.mktemp("hub")
    tiny_vlm.build("qwen2_5_vl", root / POLICY)
    return root


def test_a_policy_of_the_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (block,) = blocks("Policies", "python")
    names: dict[str, Any] = {}
    exec(compile(block.replace('"cuda"', '"cpu"'), "models.md", "exec"), names)
    assert names["mask"].sum() == len(names["drafts"][0].tokens) > 0


def test_the_trainings_of_the_page(
    place: Path, backbone: str, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    monkeypatch.chdir(place)
    (lora,), (served,) = blocks("Policies", "sh"), blocks("vLLM rollouts", "sh")
    code, _, err = command(*shlex.split(lora)[1:], "--backbone", backbone, *SMALL)
    assert code == 0, err
    begin, training = served.splitlines()
    assert begin.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve " + POLICY)
    with stand_in(place / POLICY) as (url, _):
        words = shlex.split(training.replace("http://127.0.0.1:8000/v1", url))[1:]
        code, _, err = command(*words, "--backbone", backbone, *SMALL)
    assert code == 0, err
    assert numbers(place / "runs" / "served")[0]["mismatch/mean"] < 0.1


def test_the_sizes_of_the_page() -> None:
    """Of one policy. Fails when its shape is not the published one, or another script made the table."""
    name = "Qwen2.5-VL-3B"
    config = dict(configs())[name]
    assert counted(config)["parameters"] == PUBLISHED[name]
    assert row(name, config) in PAGE and all(f"\n| {other} |" in PAGE for other, _ in configs())

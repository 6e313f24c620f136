"""benchmarks/full_size.py at tiny size: every row is there, and the published sizes are what they say."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import full_counts
import full_size
import grpo_throughput
import shapes


def test_the_full_shapes_have_the_published_numbers_of_parameters() -> None:
    """Without weights. Fails for one layer more, or an untied output head."""
    unet = shapes.sdxl(shapes.FULL, "meta", torch.bfloat16).unet
    policy = shapes.policy(shapes.FULL, "meta", torch.bfloat16, 48).network
    found = {"unet": unet.num_parameters(), "policy": policy.num_parameters()}
    assert found == shapes.PARAMETERS and unet.dtype == policy.dtype == torch.bfloat16


def test_all_rows_at_tiny_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a way is left out, a draft is refused, or a guided step has other operations than counted on
    networks without weights.
    """
    options = ["--size", "tiny", "--device", "cpu", "--batch", "1", "--steps", "6", "--minutes", "0",
               "--repeats", "2"]  # fmt: skip
    report = full_size.main([*options, "--only", "sd3.5-medium", "grpo", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "full_size.json").read_text()) == report
    text = (tmp_path / "full_size.md").read_text()
    assert text in capsys.readouterr().out and text.count("\n| 5 |") == 3 and "background" in text
    found = report["backbones"]["sd3.5-medium"]
    rows = {(row["refinements"], row["loop"], row["delay"]): row for row in found["rows"]}
    expected = [(0, "closed", 0), *((n, loop, 0) for loop in ("closed", "open") for n in (1, 3, 5))]
    assert list(rows) == [*expected, (5, "closed", 1)] and rows[0, "closed", 0]["ratio"] == 1
    for loop in ("closed", "open"):
        spent = [rows[n, loop, 0]["policy seconds"] for n in (1, 3, 5)]
        assert min(spent) > 0  # how they grow is for a machine without other work to say
    counted = full_counts.main(["--size", "tiny", "--batch", "1", "--tokens", "4"])
    step, decoded, embedded = counted["sd3.5-medium"]
    told = {part["phase"]: part["operations"] for part in found["parts"]}
    assert told["denoiser, a guided step"] == step and told["estimates decoded"] == decoded
    assert told["prompts embedded"] == embedded
    assert told["policy writes a token"] > counted["policy"].token > 0
    phases = {row["phase"]: row for row in report["grpo"]["phases"]}
    assert report["grpo"]["repeats"] == 2
    assert sum(row["share"] for row in phases.values()) == pytest.approx(1) and phases["update"]["ours"] > 0
    assert report["grpo"]["floor"] == sum(row["floor"] for row in phases.values() if row["floor"])


def test_both_sides_are_warm_and_timed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a side's first update is timed, the sides do not take turns, or one number stands for all."""
    done: list[tuple[str, int]] = []

    def update(side: str, number: int) -> dict[str, float]:
        done.append((side, number))
        return dict.fromkeys(grpo_throughput.PHASES, 0.0) | {"policy": [100.0, 2.0, 1.0, 9.0][number]}

    monkeypatch.setattr(grpo_throughput, "update", update)
    found = grpo_throughput.medians({"ours": "a", "naive": "b"}, 3)  # type: ignore[dict-item]
    assert found["ours"] == found["naive"] and found["ours"]["policy"] == found["ours"]["all"] == 2.0
    assert done == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2), ("b", 3), ("a", 3)]

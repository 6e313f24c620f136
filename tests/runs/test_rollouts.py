"""`promptloop train mini --rollouts URL`: the drafts come from a server, the gradient from here."""

from pathlib import Path
from typing import Any

import pytest
from stand_in_vllm import stand_in
from tiny_training import learned, numbers, result

from promptloop.recipes.embedded import mini
from promptloop.recipes.grpo import grpo
from promptloop.recipes.reading import settings_from
from promptloop.recipes.settings import Grpo

SMALL = {
    "steps": 2, "queries": 2, "group": 4, "denoising_steps": 3, "refinements": 2, "window": (0.0, 1.0),
    "reward": "tiny_reward:brightness", "gold": "none", "max_new_tokens": 6, "sheet_every": 0,
    "noise": "fresh", "base_every": 0, "warmup": 0,
}  # fmt: skip


def settings(backbone: str, policy: str, **others: Any) -> Grpo:
    return settings_from(mini, {"backbone": backbone, "policy": policy, **SMALL, **others})


@pytest.fixture(scope="module")
def alone(backbone: str, policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    grpo(settings(backbone, policy), run)
    return run


def test_with_an_exact_server_the_run_is_the_run_without(
    alone: Path, backbone: str, policy: str, tmp_path: Path
) -> None:
    """Fails when the server's weights lag an update behind, or the correction is not 1 where both agree."""
    with stand_in(policy) as (url, engine):
        served = settings(backbone, policy, rollouts=url, rollouts_folder=str(tmp_path / "loras"))
        grpo(served, tmp_path / "run")
    asked = [path for path, _ in engine.history]
    assert asked.count("/v1/load_lora_adapter") == 3 == asked.count("/v1/unload_lora_adapter")
    assert asked.count("/v1/chat/completions") == 4 + 2 * 16
    assert not engine.loaded and not list((tmp_path / "loras").iterdir())
    for ours, theirs in zip(numbers(alone), numbers(tmp_path / "run"), strict=True):
        assert theirs["mismatch/max"] < 1e-4 and theirs["mismatch/effective"] > 0.9999
        assert abs(theirs["ratio"] - 1) < 1e-4
        assert all(abs(theirs[name] - value) < 1e-3 * max(1.0, abs(value)) for name, value in ours.items())
    a, b = result(alone), result(tmp_path / "run")
    assert learned(a) and a.keys() == b.keys()
    assert all(float((a[name] - b[name]).norm()) < 1e-2 * float(a[name].norm()) + 1e-6 for name in a)


def test_another_engines_drafts_are_corrected_until_they_are_too_far_off(
    backbone: str, policy: str, tmp_path: Path
) -> None:
    with stand_in(policy, scale=1.03) as (url, engine):
        grpo(settings(backbone, policy, rollouts=url), tmp_path / "run")
        for line in numbers(tmp_path / "run"):
            assert 0.003 < line["mismatch/mean"] < 0.1 and line["mismatch/effective"] < 0.9999
        chats = len(engine.history)
        with pytest.raises(ValueError, match="nothing is trained on them"):
            grpo(settings(backbone, policy, rollouts=url, mismatch_limit=0.003), tmp_path / "refused")
        assert len(engine.history) - chats == 6 and not engine.loaded
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()


REFUSED = [
    ({"rollouts": "localhost:8000"}, "give one like http"),
    ({"rollouts": "http://x/v1", "train_weights": "all"}, "need train_weights lora"),
    ({"rollouts": "http://x/v1", "shard": True}, "shard has divided it"),
    ({"policy_quantize": "4bit", "train_weights": "all"}, "policy_quantize 4bit keeps"),
    ({"policy_quantize": "8bit"}, "did you mean '4bit'"),
    ({"mismatch_cap": 0.0}, "mismatch_cap is 0"),
    ({"lora_targets": "(q_proj"}, "no regular expression"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refused_before_anything_is_loaded(given: dict[str, Any], words: str, backbone: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(backbone, "mini-vlm", **given)

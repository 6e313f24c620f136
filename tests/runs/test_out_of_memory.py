"""Memory that ends in training is told in one sentence, with what can be lowered and its present value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_reward
import torch
from tiny_training import SMALL

from promptloop.denoisers.latent import LatentDenoiser


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ((torch.Tensor, "backward"), ["the policy is trained; lower micro_batch (now 5), image_size (now 32",
                                      "gradient_checkpointing (now off)", "offload (now 'none'"]),
        ((tiny_reward, "brightness"), ["the reward scores ", "queries x group)", "(now 16 x 16)"]),
        ((LatentDenoiser, "decode"), ["while decoding 2 images; lower max_batch (now 2), ", "(now 16 x 16)"]),
    ],
    ids=["backward", "reward", "decode"],
)  # fmt: skip
def test_training_says_what_to_lower(
    place: tuple[Any, str], said: list[str], models: list[str], command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """Fails if the backend's own words come instead, as an accident with --debug."""
    monkeypatch.setattr(*place, full)
    code, _, err = command("train", "mini", *models, *SMALL, "--steps", "1", "--micro-batch", "5",
                           "--image-size", "32", "--out", str(tmp_path / "run"))  # fmt: skip
    line = next(line for line in err.splitlines() if "out of memory" in line)
    assert code == 2 and line.startswith("promptloop: out of memory while ") and "--debug" not in err
    for part in said:
        assert part in line

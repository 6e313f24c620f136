"""Checkpoints: whole or not at all, damage is named, generators come back."""

import json
import random

import numpy as np
import pytest
import torch

from promptloop import checkpoint


def saved(run, step: int, value: float = 0.0):
    return checkpoint.write(run, step, {"w": torch.full((3,), value)}, {"update": step}, keep=2)


def test_the_newest_is_read_and_old_ones_go(tmp_path) -> None:
    assert checkpoint.read(tmp_path) is None
    for step in (1, 2, 3):
        saved(tmp_path, step, step / 10)
    found = checkpoint.read(tmp_path)
    assert (
        found is not None
        and found.state == {"update": 3}
        and float(found.tensors["w"][0]) == pytest.approx(0.3)
    )
    assert checkpoint.steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("harm", ["cut", "edit", "remove", "manifest"])
def test_damage_is_named_and_the_last_good_one_used_only_when_asked(tmp_path, harm: str) -> None:
    """Fails when the sums are not compared, or an older checkpoint stands in without being asked for."""
    saved(tmp_path, 1, 0.1)
    folder = saved(tmp_path, 2, 0.2)
    file = folder / "tensors.safetensors"
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "edit":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif harm == "remove":
        file.unlink()
    else:
        (folder / checkpoint.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"000002 is damaged: .*(safetensors|manifest)"):
        checkpoint.read(tmp_path)
    found = checkpoint.read(tmp_path, last_good=True)
    assert found is not None and found.state == {"update": 1}
    (tmp_path / "checkpoints" / "000001" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="every checkpoint"):
        checkpoint.read(tmp_path, last_good=True)


def test_a_checkpoint_that_was_not_finished_does_not_exist(tmp_path) -> None:
    """Fails when the folder gets its name before all of it is written."""
    saved(tmp_path, 1)

    def stop(part) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, 2, {}, {}, add=stop)
    assert checkpoint.steps(tmp_path) == [1] and checkpoint.read(tmp_path) is not None


def test_generators_come_back() -> None:
    """Fails when one kind of generator is left out."""

    def draws() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn()),
                float(torch.rand(()))]  # fmt: skip

    random.gauss(0, 1), np.random.randn()
    tensors, state = checkpoint.generators()
    state = json.loads(json.dumps(state))
    first = draws()
    draws()
    checkpoint.set_generators(tensors, state)
    assert draws() == first

"""Pipelines whose weights are stored in other ways than they compute: float8, group offload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import tiny_more
import torch

from promptloop.controls.guidance import CFG
from promptloop.denoisers import from_pipeline
from promptloop.denoisers.memory import offload_of
from promptloop.sample import sample

FAMILIES: dict[str, Callable[[], Any]] = {"sd": tiny.sd, "sd3": tiny.sd3, "flux": tiny_more.flux}
CPU = torch.device("cpu")


def images(pipe: Any) -> torch.Tensor:
    side = 64 if "Flux" in type(pipe).__name__ else None
    made = sample(from_pipeline(pipe, size=side), ["a red circle"], seeds=[3], steps=3, controls=[CFG(4.0)])
    assert made.images is not None
    return made.images


def network(pipe: Any) -> Any:
    return pipe.components.get("unet") or pipe.components["transformer"]


def casting(pipe: Any, storage: torch.dtype) -> Any:
    """The pipeline in bfloat16, its network's weights in `storage` while they do not compute."""
    pipe.to(torch.bfloat16)
    network(pipe).enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.bfloat16)
    return pipe


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_stored_in_float8(family: str) -> None:
    """Fails if latents are cast to what the weights are stored in: no kernel computes in float8."""
    pipe = casting(FAMILIES[family](), torch.float8_e4m3fn)
    assert torch.float8_e4m3fn in {p.dtype for p in network(pipe).parameters()}
    assert from_pipeline(pipe).dtype == torch.bfloat16
    said = " ".join(from_pipeline(pipe).smaller(2))
    assert "max_batch (now 2)" in said and "dtype" not in said
    plain = images(casting(FAMILIES[family](), torch.bfloat16))
    rough = images(pipe)
    assert rough.isfinite().all() and (rough - plain).abs().mean() < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_wait_in_groups(family: str) -> None:
    """Fails if the hooks of diffusers' group offload are not looked at: latents would be made where the
    weights wait, and a shortage of memory would name offload as something that is still off.
    """
    pipe = FAMILIES[family]()
    pipe.enable_group_offload(CPU, CPU, offload_type="leaf_level")
    assert offload_of(pipe, network(pipe)) == "group"
    assert torch.equal(images(pipe), images(FAMILIES[family]()))
    pipe = FAMILIES[family]()
    pipe.enable_group_offload(torch.device("cuda"), CPU, offload_type="leaf_level")  # it need not be there
    assert {p.device for p in network(pipe).parameters()} == {CPU}
    denoiser = from_pipeline(pipe)
    assert denoiser.device.type == "cuda"
    assert not any("offload" in way for way in denoiser.smaller(1))

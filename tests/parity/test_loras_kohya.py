"""LoRAs in kohya's layout, in which most published ones for Stable Diffusion are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_loras
import torch
from safetensors.torch import save_file

from promptloop.controls.guidance import CFG
from promptloop.denoisers import load
from promptloop.sample import sample

FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {  # and the text encoders' names in the file
    "sd": (tiny.sd, {"text_encoder": "lora_te"}),
    "sdxl": (tiny.sdxl, {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}),
}
RANK, ALPHA, WEIGHT = 2, 6, 0.7
TARGETS = {**tiny_loras.TARGETS, "text": ["q_proj", "v_proj", "out_proj", "fc1"]}


def written(pipe: Any, encoders: dict[str, str], file: Path) -> dict[str, dict[str, Any]]:
    """The file: names with underscores for dots, down, up and alpha. Gives what it holds, part by part."""
    held, flat = {}, {}
    for seed, (part, prefix) in enumerate({"unet": "lora_unet", **encoders}.items()):
        targets = TARGETS["network" if part == "unet" else "text"]
        held[part], _ = tiny_loras.layers(pipe.components[part], targets, seed, RANK, ALPHA)
        for key, value in held[part].items():
            layer, _, side = key.removesuffix(".weight").rpartition(".lora_")
            old = layer if part == "unet" else f"text_model.{layer.removeprefix('text_model.')}"
            name = f"{prefix}_{old.replace('.', '_')}"  # with the names of transformers then
            flat[f"{name}.lora_{'down' if side == 'A' else 'up'}.weight"] = value
            flat[f"{name}.alpha"] = torch.tensor(float(ALPHA))
    save_file(flat, file)
    return held


def merged(pipe: Any, held: dict[str, dict[str, Any]]) -> None:
    """weight * alpha / rank * B A added to the matrices: LoRA's definition."""
    for part, tensors in held.items():
        for key, down in tensors.items():
            if key.endswith("lora_A.weight"):
                layer = pipe.components[part].get_submodule(key.removesuffix(".lora_A.weight"))
                with torch.no_grad():
                    layer.weight += WEIGHT * ALPHA / RANK * tensors[key.replace("lora_A", "lora_B")] @ down


def images(denoiser: Any) -> torch.Tensor:
    made = sample(denoiser, ["a red circle", ""], seeds=[3, 4], steps=5, controls=[CFG(4.0)]).images
    assert made is not None
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_kohyas_layout(family: str, tmp_path: Path) -> None:
    """Against weights merged by hand, text encoders too. Fails if alpha / rank or a text encoder is lost."""
    make, encoders = FAMILIES[family]
    pipe = make()
    tiny.saved(pipe, tmp_path / "base")
    held = written(pipe, encoders, tmp_path / "ink.safetensors")
    plain = images(load(tmp_path / "base"))
    denoiser: Any = load(tmp_path / "base", lora={tmp_path / "ink.safetensors": WEIGHT})
    assert denoiser.lora_weights == {"ink": WEIGHT}
    merged(pipe, held)
    tiny.saved(pipe, tmp_path / "merged")
    expected = images(load(tmp_path / "merged"))
    assert (expected - plain).abs().max() > 0.03
    assert (images(denoiser) - expected).abs().max() <= 1e-4
    with denoiser.loras():
        assert torch.equal(images(denoiser), plain)

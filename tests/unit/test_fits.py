"""LoRAs that have not gone in whole are refused: nothing of a file is dropped, nothing of a layer made up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_loras
import tiny_more
import torch
from safetensors.torch import load_file, save_file

from promptloop.denoisers import load

Tensors = dict[str, Any]


@pytest.fixture(scope="module", params=["pixart", "sd"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    pipe = {"pixart": tiny_more.pixart, "sd": tiny.sd}[request.param]()
    tiny_loras.write(pipe, root / "ink", "peft", seed=1)
    if request.param == "sd":
        tiny_loras.write(pipe, root / "both", "diffusers", seed=1, texts=("text_encoder",))
    return tiny.saved(pipe, root / "base")


def changed(folder: Path, to: Path, change: Callable[[Tensors], Tensors], **settings: Any) -> Path:
    """A copy of a LoRA's folder with other tensors and settings."""
    to.mkdir()
    (file,) = folder.glob("*.safetensors")
    save_file(change(load_file(file)), to / file.name)
    if (folder / "adapter_config.json").is_file():
        said = json.loads((folder / "adapter_config.json").read_text()) | settings
        (to / "adapter_config.json").write_text(json.dumps(said))
    return to


def renamed(pattern: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {re.sub(pattern, new, key): value for key, value in held.items()}


def only(pattern: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {key: value for key, value in held.items() if re.search(pattern, key)}


def magnitude(held: Tensors) -> Tensors:
    key = next(iter(held))
    return held | {re.sub(r"lora_[AB]\.weight", "lora_magnitude_vector", key): torch.ones(16)}


CHANGES = {
    "prefix": renamed("base_model.model.", "base_model.model.transformer."),
    "attn9": renamed("attn1", "attn9"),
    "one attn9": renamed(r"^(.*)\.1\.attn1|attentions\.0\.(.*)attn1", "x.attn9"),
    "no A": only("lora_B"),
    "no B": only("lora_A"),
    "magnitude": magnitude,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_peft_file_that_is_not_whole(base: Path, change: str, tmp_path: Path) -> None:
    """Fails if sizes alone are compared, or a matrix is left at random."""
    load(base, lora=base.parent / "ink")
    lora = changed(base.parent / "ink", tmp_path / "odd", CHANGES[change])
    with pytest.raises(ValueError, match=f"lora {lora} (fits|lacks|names no|does not fit)"):
        load(base, lora=lora)


DIFFUSERS = {
    "text renamed": renamed(r"text_encoder\.", "text_encoder.other."),
    "one text renamed": renamed(r"text_encoder\.(.*)layers\.1.*q_proj", "text_encoder.x"),
    "no A": only(r"lora_B|\.up\."),
    "no B": only(r"lora_A|\.down\."),
    "no B of the network": lambda held: {k: v for k, v in held.items() if "unet" not in k or "lora_A" in k},
    "no A of the text encoder": lambda held: {k: v for k, v in held.items() if "unet" in k or "_B" in k},
    "magnitude": magnitude,
}


@pytest.mark.parametrize("change", DIFFUSERS)
def test_a_diffusers_file_that_is_not_whole(change: str, base: Path, tmp_path: Path) -> None:
    """Fails if what diffusers drops is dropped, or its NotImplementedError comes through."""
    if not (base.parent / "both").is_dir():
        pytest.skip("diffusers has no loader for it")
    load(base, lora=base.parent / "both")
    lora = changed(base.parent / "both", tmp_path / "odd", DIFFUSERS[change])
    with pytest.raises(ValueError, match=f"lora {lora} (fits|lacks|names no|does not fit|has weights)"):
        load(base, lora=lora)


def test_a_lora_of_another_family(base: Path, tmp_path: Path) -> None:
    pipe = tiny.sd3() if "pixart" in str(base) else tiny_more.pixart()
    lora = tiny_loras.write(pipe, tmp_path / "theirs", "peft", seed=1)
    with pytest.raises(ValueError, match=f"lora {lora} (fits|names no|does not fit)"):
        load(base, lora=lora)


def test_broken_settings_and_files_are_one_sentence(base: Path, tmp_path: Path) -> None:
    """Fails if the file is not named, or the reason is cut off."""
    ink = base.parent / "ink"
    lora = changed(ink, tmp_path / "rank", dict, r=5)
    with pytest.raises(ValueError, match=f"lora {lora} does not fit .*size mismatch"):
        load(base, lora=lora)
    lora = changed(ink, tmp_path / "alpha", dict, lora_alpha=0)
    with pytest.raises(ValueError, match=f"lora {lora} has lora_alpha 0"):
        load(base, lora=lora)
    lora = changed(ink, tmp_path / "cut", dict)
    file = lora / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"the file {file} of lora .* is damaged"):
        load(base, lora=lora)
    given: Any = {ink: "strong"}
    with pytest.raises(ValueError, match="the weight of lora .*ink is 'strong'; give a number"):
        load(base, lora=given)

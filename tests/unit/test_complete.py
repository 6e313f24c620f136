"""Folders whose weights are not whole are refused: nothing of a network is made up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_more
import tiny_vlm
from safetensors.torch import load_file, save_file

from promptloop import load, load_policy
from promptloop.parameters import LoRA, with_lora
from promptloop.policies.mllm import Mllm
from promptloop.world import weights


def without(file: Path, name: str = "") -> str:
    """Takes a tensor out of a file of weights: the one named, or one in its middle."""
    held = load_file(file)
    name = name or sorted(held)[len(held) // 2]
    held.pop(name)
    save_file(held, file, {"format": "pt"})
    return name


@pytest.mark.parametrize(("build", "part"), [(tiny.sd, "text_encoder"), (tiny.sd, "unet"), (tiny.sd, "vae"),
                                             (tiny_more.flux, "text_encoder_2"),
                                             (tiny.sd3, "transformer")])  # fmt: skip
def test_a_part_that_lacks_a_tensor(build: Callable[[], Any], part: str, tmp_path: Path) -> None:
    """Fails if the tensor is drawn at random, or its absence told by torch's "meta tensor"."""
    folder = tiny.saved(build(), tmp_path)
    load(folder)
    (file,) = (folder / part).glob("*.safetensors")
    name = without(file, "encoder.block.0.layer.1.DenseReluDense.wi.weight" if "2" in part else "")
    with pytest.raises(ValueError, match=f"{part} lacks 1 of the network's tensors .*{name}"):
        load(folder)


def test_a_policy_that_lacks_a_tensor(tmp_path: Path) -> None:
    """Fails if the tensor is drawn at random, or a tied head is called missing."""
    folder = tiny_vlm.build("idefics3", tmp_path / "whole")
    without(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"whole lacks 1 of the network's tensors"):
        load_policy(str(folder))
    shutil.rmtree(folder)
    tied = tiny_vlm.build("idefics3", folder)
    config = json.loads((tied / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (tied / "config.json").write_text(json.dumps(config))
    without(tied / "model.safetensors", "lm_head.weight")
    load_policy(str(tied))


def test_a_surplus_tensor_is_told(tmp_path: Path) -> None:
    """Fails if it is dropped in silence."""
    folder = tiny.saved(tiny.sd(), tmp_path)
    file = folder / "text_encoder" / "model.safetensors"
    held = load_file(file)
    save_file(held | {"encoder.layers.9.fc1.weight": held[min(held)].clone()}, file, {"format": "pt"})
    with pytest.warns(UserWarning, match=r"text_encoder has 1 tensors .*layers\.9\.fc1"):
        load(folder)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([], "names no pipeline|neither"),
        ({"unet": [None, None]}, "leaves out unet"),
        ({"vae": ["diffusers"]}, "cannot be loaded"),
        ({"unet": ["diffusers", "AutoencoderKL"]}, "cannot be loaded"),
        ({"unet": ["diffusers", "NoSuchNetwork"]}, "cannot be loaded"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "leaves out text_encoder_2, tokenizer_2"),
        ({"_class_name": "FluxPipeline"}, "leaves out text_encoder_2, tokenizer_2, transformer"),
    ],
)
def test_a_broken_index_is_one_sentence(said: Any, why: str, tmp_path: Path) -> None:
    """Fails if what the libraries raise comes through."""
    folder = tiny.saved(tiny.sd(), tmp_path)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | said if isinstance(said, dict) else said))
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*{why}"):
        load(folder)


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    folder = tiny.saved(tiny.sd(), tmp_path)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ValueError, match="its part tokenizer is not there"):
        load(folder)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "chat_template.jinja"])
def test_a_damaged_file_of_a_policy_is_named(file: str, tmp_path: Path) -> None:
    """Fails if it is passed over (as transformers does with generation_config.json), or no file is named."""
    folder = tiny_vlm.build("idefics3", tmp_path / "whole")
    (folder / file).write_text('{"a":')
    with pytest.raises(ValueError, match=rf"{folder}.*({file}|chat template)"):
        load_policy(str(folder))


def test_a_chat_template_that_cannot_be_rendered(tmp_path: Path) -> None:
    """Fails if jinja's error comes at the first draft."""
    folder = tiny_vlm.build("idefics3", tmp_path / "whole")
    (folder / "chat_template.jinja").write_text("{{ messages[0")
    with pytest.raises(ValueError, match=rf"chat template of {folder} cannot be used"):
        load_policy(str(folder))


def test_a_policys_lora_that_is_not_whole(tmp_path: Path) -> None:
    """Fails if peft's own reading stands, which leaves a missing tensor at its start."""
    lora = Path(shutil.copytree(weights("mini-policy"), tmp_path / "lora"))
    load_policy(str(lora))
    lost = without(lora / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"lacks 1 of the network's \d+ tensors \({lost}\)"):
        load_policy(str(lora))
    held = load_file(lora / "adapter_model.safetensors")
    tensor = next(iter(held.values())).clone()
    save_file({**held, lost: tensor, "base_model.model.more.lora_A.weight": tensor + 1},
              lora / "adapter_model.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(ValueError, match="more.lora_A.weight"):
        load_policy(str(lora))


def test_a_policys_lora_with_other_names_and_with_new_words(tmp_path: Path) -> None:
    """Fails when a LoRA in an older transformers' names, which peft passes over, loads as one of no effect,
    or when rows of new words beside a LoRA are held against it.
    """
    folder = tiny_vlm.build("qwen2_5_vl", tmp_path / "base")
    policy = with_lora(Mllm.load(folder), LoRA(), seed=0)
    policy.save(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    new = load_file(file)
    words = next(n for n in policy.network.state_dict() if n.endswith("embed_tokens.weight"))
    save_file({**new, words: policy.network.state_dict()[words]}, file, {"format": "pt"})
    Mllm.load(folder, lora=tmp_path / "lora")
    save_file({n.replace(".language_model.", "."): t for n, t in new.items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ of the network's \d+ tensors"):
        Mllm.load(folder, lora=tmp_path / "lora")


@pytest.mark.parametrize("name", ["mini-vlm", "http://127.0.0.1:1/v1#some"])
def test_an_unknown_setting_of_a_policy(name: str) -> None:
    """Fails if Python's own TypeError comes up, which names no near one."""
    with pytest.raises(ValueError, match="'max_new_token'; did you mean 'max_new_tokens'"):
        load_policy(name, max_new_token=8)

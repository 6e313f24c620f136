"""What a model's folder holds and must not matter: generation_config, video processor; and LoRA targets."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_vlm
import torch
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin

from promptloop.parameters import LoRA, with_lora
from promptloop.policies import Draft, Mllm, Request
from promptloop.policies.message import messages
from promptloop.policies.processor import load_processor
from promptloop.recipes.parts import load_policy

SAYS = [
    {"do_sample": True, "top_k": 1, "top_p": 0.1, "temperature": 0.1, "repetition_penalty": 1.3},
    {"num_beams": 4, "num_return_sequences": 2, "no_repeat_ngram_size": 1, "min_new_tokens": 5},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    families = ["llava", "qwen2_5_vl", "smolvlm", *tiny_vlm.MORE]
    return {family: tiny_vlm.build(family, root / family) for family in families}


def requests() -> list[Request]:
    image = torch.rand(3, 40, 52, generator=torch.Generator().manual_seed(0))
    return [
        Request("a dog", "a dog"),
        Request("a cat", "one cat", image, 0.5),
        Request("two", "a cat", image, 0.2),
    ]


def written(folder: Path) -> tuple[list[Draft], torch.Tensor]:
    policy = Mllm.load(folder, max_new_tokens=8)
    drafts = policy.write(requests(), [1, 2, 3])
    with torch.no_grad():
        return drafts, policy.log_prob(drafts)[0]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_generation_config_changes_neither_drafts_nor_log_probs(
    family: str, folders: dict[str, Path]
) -> None:
    """Fails when drafts go through `generate`'s own sampling, or its beams reach the positions."""
    file = folders[family] / "generation_config.json"
    ends = {name: id for name, id in json.loads(file.read_text()).items() if name.endswith("token_id")}
    file.write_text(json.dumps(ends))
    drafts, log_probs = written(folders[family])
    for says in SAYS:
        file.write_text(json.dumps(ends | says))
        others, again = written(folders[family])
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(drafts, others, strict=True))
        assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(drafts, others, strict=True))
        assert torch.equal(log_probs, again)


@pytest.mark.parametrize("family", list(tiny_vlm.MORE))
def test_llavas_that_cut_pictures_into_tiles(family: str, folders: dict[str, Path]) -> None:
    """Greedy is transformers' own, and recomputed is recorded. Fails when image_sizes are not handed on."""
    policy = Mllm.load(folders[family], max_new_tokens=8)
    drafts = policy.write(requests(), [1, 2, 3])
    for row, draft in zip(policy.log_prob(drafts)[0], drafts, strict=True):
        assert torch.allclose(row[: len(draft.tokens)], draft.log_probs, atol=1e-4)
    greedy = Mllm.load(folders[family], max_new_tokens=8, temperature=0.0)
    for request, draft in zip(requests(), greedy.write(requests(), [0, 0, 0]), strict=True):
        text = policy.processor.apply_chat_template(messages(request), add_generation_prompt=True)
        shown = request.estimate
        image = None if shown is None else [(shown * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()]
        inputs = policy.processor(text=[text], images=image, return_tensors="pt")
        out = policy.network.generate(
            **inputs, do_sample=False, max_new_tokens=8, suppress_tokens=list(policy.sampling.never)
        )
        assert torch.equal(out[0, inputs["input_ids"].shape[1] :], draft.tokens)


def test_a_video_processor_is_never_built(folders: dict[str, Path]) -> None:
    """With torchvision or without: transformers is never asked. SmolVLM2's own wants num2words for videos.

    Fails when AutoProcessor is used for such a family, or the missing package is left replaced.
    """
    for family in ("qwen2_5_vl", "smolvlm", "llava_onevision"):
        processor = load_processor(str(folders[family]))
        assert isinstance(processor, ProcessorMixin) and "video_processor" not in vars(processor)
        saved = json.loads((folders[family] / "processor_config.json").read_text())
        assert saved["processor_class"] == type(processor).__name__
    assert not any(word in Path(sys.modules[load_processor.__module__].__file__).read_text()
                   for word in ("is_torchvision_available", "import torchvision"))  # fmt: skip
    assert processing_smolvlm.num2words is None or callable(processing_smolvlm.num2words)
    assert processing_smolvlm.num2words is not str


@pytest.mark.parametrize(
    ("family", "targets", "layers"),
    [
        ("llava", r".*language_model.*\.(q|v)_proj", 4),
        ("llava", r".*vision_tower.*\.q_proj", 2),
        ("qwen2_5_vl", r".*language_model.*\.layers\.1\..*(gate|up|down)_proj", 3),
        ("qwen2_5_vl", r".*visual.*\.qkv", 2),
    ],
)
def test_lora_targets_by_a_regular_expression(
    family: str, targets: str, layers: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Fails when the expression is searched for instead of matched, or the default's exclusions stay."""
    policy = with_lora(Mllm.load(folders[family], max_new_tokens=8), LoRA(2, 4, targets), seed=0)
    trained = [name for name, p in policy.network.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * layers and all("lora" in name for name in trained)
    policy.log_prob(policy.write(requests(), [1, 2, 3]))[0].sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for n, p in policy.network.named_parameters() if "lora_B" in n)
    policy.save(tmp_path)
    assert peft.PeftConfig.from_pretrained(str(tmp_path)).target_modules == targets


def test_lora_targets_that_match_nothing_name_what_there_is(folders: dict[str, Path]) -> None:
    policy = Mllm.load(folders["llava"])
    for wrong in ("q_proj", r".*\.wq"):
        with pytest.raises(ValueError, match=r"matches no linear layer; .*layers\.0\..*_proj"):
            with_lora(policy, LoRA(2, 4, wrong), seed=0)
    with pytest.raises(ValueError, match="no regular expression"):
        LoRA(2, 4, "(q_proj")
    own = with_lora(policy, LoRA(2, 4), seed=0)
    with pytest.raises(ValueError, match="on its own layers"):
        with_lora(own, LoRA(2, 4, ".*q_proj"), seed=0)


def test_four_bits_without_bitsandbytes_or_a_device_it_knows(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the absence says; where bitsandbytes is installed, docs/models.md has the numbers."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"pip install 'promptloop\[4bit\]'"):
        load_policy(str(folders["llava"]), quantize="4bit")
    with pytest.raises(ValueError, match="did you mean '4bit'"):
        load_policy(str(folders["llava"]), quantize="8bit")
    policy = Mllm.load(folders["llava"])
    policy.network.is_loaded_in_4bit = True
    with pytest.raises(ValueError, match="not trained beside"):
        with_lora(policy, LoRA(2, 4), seed=0)
    known = types.ModuleType("bitsandbytes")
    known.supported_torch_devices, known.__version__ = {"cuda", "xpu"}, "0.50"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", known)
    with pytest.raises(ValueError, match="does not work on cpu: bitsandbytes 0.50 knows cuda, xpu"):
        load_policy(str(folders["llava"]), quantize="4bit")


def test_a_lora_over_four_bits_is_loaded_over_them(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved and loaded again, without a word of it (as `generate` and `replay` load a trained policy). Fails
    if the folder forgets how its base was kept: drafts would come from others than the weights trained with.
    """
    asked: list[str] = []

    def kept(quantize: str, *_: Any) -> dict[str, Any]:
        asked.append(quantize)
        return {}  # whole weights, which are at hand everywhere

    with monkeypatch.context() as patch:
        patch.setattr("promptloop.policies.saved.quantized", kept)
        policy = with_lora(Mllm.load(folders["llava"], quantize="4bit"), LoRA(2, 4), seed=0)
        policy.save(tmp_path / "lora")
        assert Mllm.load(folders["llava"], lora=tmp_path / "lora").quantize == "4bit"
        assert Mllm.load(folders["llava"], lora=tmp_path / "lora", quantize="none").quantize == "none"
        assert Mllm.load(folders["llava"]).quantize == "none"
    assert asked == ["4bit", "4bit", "none", "none"]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"trained over weights in four bits: .*pip install 'promptloop"):
        load_policy(str(tmp_path / "lora"))

"""HPSv3 against the same mathematics written out slowly, from a tiny checkpoint in the released layout."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
import torch
from safetensors.torch import save_file
from slow_clips import gelu, linear, norm, quick
from tiny_clips import Draw
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from promptloop.recipes.rewards import reward_named
from promptloop.rewards.hpsv3 import CHAT, fitted, patches
from promptloop.rewards.pictures import CLIP_STD

State = dict[str, Tensor]
WIDTH, HEADS, SHARED, EYES, PATCH, LAYERS = 48, 4, 2, 32, 8, 2  # SHARED heads of keys, all of 12; eyes' of 8
TEXT = "\nA picture of {text_prompt} \nrating: <|Reward|>\n\nEND\n"
QUERIES = ["a red circle", "two small green squares above a star", "x"]
SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def state(rows: int) -> State:
    """The names of transformers before 4.52, in which the release was trained, its words' head included."""
    draw = Draw(5)
    draw("visual.patch_embed.proj.weight", EYES, 3, 2, PATCH, PATCH, wide=0.05)
    for k in range(LAYERS):
        at = f"visual.blocks.{k}"
        draw.norm(f"{at}.norm1", EYES), draw.norm(f"{at}.norm2", EYES)
        draw.linear(f"{at}.attn.qkv", EYES, 3 * EYES), draw.linear(f"{at}.attn.proj", EYES, EYES)
        draw.linear(f"{at}.mlp.fc1", EYES, 4 * EYES), draw.linear(f"{at}.mlp.fc2", 4 * EYES, EYES)
    draw.norm("visual.merger.ln_q", EYES)
    (
        draw.linear("visual.merger.mlp.0", 4 * EYES, 4 * EYES),
        draw.linear("visual.merger.mlp.2", 4 * EYES, WIDTH),
    )
    draw("model.embed_tokens.weight", rows, WIDTH), draw("lm_head.weight", rows, WIDTH)
    for k in range(LAYERS):
        at = f"model.layers.{k}"
        for part, size in (("q", WIDTH), ("k", 12 * SHARED), ("v", 12 * SHARED)):
            draw.linear(f"{at}.self_attn.{part}_proj", WIDTH, size)
        draw.linear(f"{at}.self_attn.o_proj", WIDTH, WIDTH, bias=False)
        for part in ("gate", "up"):
            draw.linear(f"{at}.mlp.{part}_proj", WIDTH, 96, bias=False)
        draw.linear(f"{at}.mlp.down_proj", 96, WIDTH, bias=False)
        draw(f"{at}.input_layernorm.weight", WIDTH, around=1.0)
        draw(f"{at}.post_attention_layernorm.weight", WIDTH, around=1.0)
    draw("model.norm.weight", WIDTH, around=1.0)
    for k, (inputs, outputs) in {0: (WIDTH, 16), 3: (16, 8), 5: (8, 2)}.items():
        draw.linear(f"rm_head.{k}", inputs, outputs)
    return draw.made


def saved(folder: Path, tensors: State | None = None) -> Path:
    words = tiny_vlm.tokenizer(*SPECIAL)
    folder.mkdir(parents=True, exist_ok=True)
    words.backend_tokenizer.save(str(folder / "tokenizer.json"))
    turns = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    text = {"vocab_size": 9, "rope_parameters": turns, "rms_norm_eps": 1e-6, **tiny_vlm.WIDTH}
    eyes = {"depth": LAYERS, "embed_dim": EYES, "hidden_size": WIDTH, "num_heads": 4, "patch_size": PATCH}
    ids = {"image_token_id": words.convert_tokens_to_ids("<|image_pad|>")}
    config = {"model_type": "qwen2_vl", "text_config": text, "vision_config": eyes, **ids}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "instruction.txt").write_text(TEXT)
    save_file(state(len(words) + 1) if tensors is None else tensors, folder / "HPSv3.safetensors")
    return folder


def rooted(w: State, name: str, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """[T, h] by angles [T, h / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    weights = (q @ k.T / math.sqrt(q.shape[1])).exp()
    weights = weights.tril() if causal else weights
    return weights / weights.sum(1, keepdim=True) @ v


def sees(w: State, pieces: Tensor, rows: int, columns: int) -> Tensor:
    """Patches [P, 3 * 2 * 8 * 8], square by square of 2 x 2, to [P / 4, W]."""
    x = pieces @ w["visual.patch_embed.proj.weight"].flatten(1).T
    places = [(2 * i + a, 2 * j + b) for i in range(rows // 2) for j in range(columns // 2)
              for a in (0, 1) for b in (0, 1)]  # fmt: skip
    speeds = 10000.0 ** -(torch.arange(0, 4, 2).double() / 4)
    angles = torch.tensor(places).double()[:, :, None] * speeds
    angles = angles.flatten(1)  # first the row's, then the column's
    for k in range(LAYERS):
        at = f"visual.blocks.{k}"
        q, key, v = linear(w, f"{at}.attn.qkv", norm(w, f"{at}.norm1", x, 1e-6)).chunk(3, -1)
        mine = [slice(h, h + 8) for h in range(0, EYES, 8)]
        heads = [attention(turned(q[:, m], angles), turned(key[:, m], angles), v[:, m], False) for m in mine]
        x = x + linear(w, f"{at}.attn.proj", torch.cat(heads, 1))
        x = x + linear(w, f"{at}.mlp.fc2", quick(linear(w, f"{at}.mlp.fc1", norm(w, f"{at}.norm2", x, 1e-6))))
    x = norm(w, "visual.merger.ln_q", x, 1e-6).reshape(-1, 4 * EYES)
    return linear(w, "visual.merger.mlp.2", gelu(linear(w, "visual.merger.mlp.0", x)))


def slow(w: State, pixels: Tensor, query: str) -> float:
    """The whole text, what follows the reward's token included."""
    rows, columns = (side // PATCH for side in pixels.shape[-2:])
    seen = sees(w, patches(pixels[None], PATCH, 2, 2), rows, columns)
    words = tiny_vlm.tokenizer(*SPECIAL)
    words.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    text = CHAT.format(picture="<|image_pad|>" * len(seen), text=TEXT.format(text_prompt=query))
    ids = words(text + "<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").input_ids[0]
    x = w["model.embed_tokens.weight"][ids]
    x[ids == words.convert_tokens_to_ids("<|image_pad|>")] = seen
    angles = torch.arange(len(ids)).double()[:, None] * 10000.0 ** -(torch.arange(0, 12, 2).double() / 12)
    for k in range(LAYERS):
        at = f"model.layers.{k}"
        y = rooted(w, f"{at}.input_layernorm", x)
        q, key, v = (linear(w, f"{at}.self_attn.{part}_proj", y) for part in "qkv")
        heads = []
        for h in range(HEADS):
            mine, theirs = slice(12 * h, 12 * h + 12), slice(12 * (h // 2), 12 * (h // 2) + 12)
            heads.append(
                attention(turned(q[:, mine], angles), turned(key[:, theirs], angles), v[:, theirs], True)
            )
        x = x + linear(w, f"{at}.self_attn.o_proj", torch.cat(heads, 1))
        y = rooted(w, f"{at}.post_attention_layernorm", x)
        gate = linear(w, f"{at}.mlp.gate_proj", y)
        x = x + linear(
            w, f"{at}.mlp.down_proj", gate / (1 + (-gate).exp()) * linear(w, f"{at}.mlp.up_proj", y)
        )
    y = rooted(w, "model.norm", x)[ids.tolist().index(words.convert_tokens_to_ids("<|Reward|>"))]
    y = linear(w, "rm_head.3", linear(w, "rm_head.0", y).clamp(min=0)).clamp(min=0)
    return float(linear(w, "rm_head.5", y)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("hpsv3"))


def test_the_reward_is_what_its_formula_says(folder: Path) -> None:
    """Fails when the picture's tokens get rows and columns as positions, the wrong token is read, a tensor is
    renamed wrongly, patches come in another order, or a text's filling counts.
    """
    reward: Any = reward_named(f"hpsv3:{folder}")
    reward.tokens = 6
    w = {name: value.double() for name, value in state(len(tiny_vlm.tokenizer(*SPECIAL)) + 1).items()}
    images = torch.rand(3, 3, 40, 60, generator=torch.Generator().manual_seed(1))
    ready = fitted(images, 2 * PATCH, 6).double()
    assert ready.shape[-2:] == (32, 48)
    sides = [fitted(torch.zeros(1, 3, s, s), 28, 256).shape[-1] for s in (512, 768, 1024, 200)]
    assert sides == [448, 420, 448, 448]  # 768: the release's own rounding
    wanted = [slow(w, picture, query) for picture, query in zip(ready, QUERIES, strict=True)]
    assert max(wanted) - min(wanted) > 0.05
    assert reward(images, QUERIES).tolist() == pytest.approx(wanted, abs=1e-5)
    reward.batch = 2
    assert reward(images, QUERIES).tolist() == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(ValueError, match="which stand for other things"):
        reward(images[:1], ["<|image_pad|>"])


def test_gradients_are_the_slopes(folder: Path) -> None:
    """Against central differences, one direction. Qwen2-VL turns its picture's queries in float32, so the
    steps are larger than elsewhere. Fails when something is detached.
    """
    reward: Any = reward_named(f"hpsv3:{folder}").double()
    reward.tokens, rng = 4, torch.Generator().manual_seed(2)
    image = (0.3 + 0.4 * torch.rand(1, 3, 36, 36, generator=rng)).double().requires_grad_()
    way = torch.randn(image.shape, generator=rng).double()
    reward(image, QUERIES[:1]).sum().backward()
    slope, step = float((image.grad * way).sum()), 1e-3
    with torch.no_grad():
        ahead, behind = (reward(image + side * step * way, QUERIES[:1]).sum() for side in (1, -1))
    assert abs(slope) > 1e-3
    assert float(ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-2)


def test_pictures_are_as_qwens_processor_makes_them() -> None:
    """PIL's bicubic and Qwen2-VL's patches, within rounding to bytes. Fails with another order or size."""
    bytes_ = (torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))[None] * 255).round()
    image = torch.nn.functional.interpolate(bytes_, (200, 300), mode="bicubic").clamp(0, 255).round()
    area = 24 * 16 * 16
    theirs = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": area, "longest_edge": area},
    )(image[0].to(torch.uint8).permute(1, 2, 0).numpy(), return_tensors="pt")
    ours = patches(fitted(image / 255, 16, 24), PATCH, 2, 2)
    assert theirs["image_grid_thw"].tolist() == [[1, 8, 12]] and ours.shape == theirs["pixel_values"].shape
    assert float((ours - theirs["pixel_values"]).abs().max()) < 2 / 255 / min(CLIP_STD)


def test_what_does_not_fit_is_told(folder: Path, tmp_path: Path) -> None:
    """Fails when another checkpoint or instruction is taken in silence."""
    tensors = state(len(tiny_vlm.tokenizer(*SPECIAL)) + 1)
    lacking = {name: value for name, value in tensors.items() if name != "visual.merger.ln_q.bias"}
    surplus = tensors | {"v_head.bias": torch.zeros(1)}
    for odd, wanted in ((lacking, "lacks 1 tensors"), (surplus, "has left over 1"),
                        ({"rm_head.0.weight": torch.zeros(2, 2)}, "is missing")):  # fmt: skip
        with pytest.raises(ValueError, match=wanted):
            reward_named(f"hpsv3:{saved(tmp_path, odd)}")
    config = json.loads((saved(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_token_id": 3}))
    with pytest.raises(ValueError, match=r"has another <\|image_pad\|> than"):
        reward_named(f"hpsv3:{tmp_path}")
    (tmp_path / "instruction.txt").write_text("Rate {text_prompt}")
    with pytest.raises(ValueError, match="once each"):
        reward_named(f"hpsv3:{tmp_path}")
    (tmp_path / "instruction.txt").unlink()
    with pytest.raises(ValueError, match="needs .*instruction.txt"):
        reward_named(f"hpsv3:{tmp_path}")

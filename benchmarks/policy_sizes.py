"""How much memory the published policies take: parameters counted on networks without memory (meta device).

`python benchmarks/policy_sizes.py` prints the table of docs/models.md. The shapes are those of the published
config.json files; the counts beside the names in `PUBLISHED` are the checkpoints' own, where we know them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn

from promptloop.parameters import EYES, LoRA

tf: Any = transformers
FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # NF4: a byte a block of 64, a float32 for 256 blocks
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16}  # fmt: skip
PUBLISHED = {
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "LLaVA-1.5-7B": 7_063_427_072,
    "LLaVA-NeXT-7B (Mistral)": 7_566_747_648,
    "LLaVA-OneVision-0.5B": 893_618_208,
    "LLaVA-OneVision-7B": 8_030_348_832,
}


def language(hidden: int, inner: int, layers: int, heads: int, kv: int, **others: Any) -> dict[str, Any]:
    return {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, **others}  # fmt: skip


def qwen2_5(text: dict[str, Any], tied: bool) -> Any:
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
              "out_hidden_size": text["hidden_size"]}  # fmt: skip
    return tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def qwen3(text: dict[str, Any], vision: dict[str, Any], tied: bool) -> Any:
    seen = {"num_heads": 16, "patch_size": 16, "out_hidden_size": text["hidden_size"], **vision}
    words = {"vocab_size": 151936, "head_dim": 128, **text}
    return tf.Qwen3VLConfig(text_config=words, vision_config=seen, tie_word_embeddings=tied)


def small(text: dict[str, Any], vision: dict[str, Any], scale: int, kind: Any, tied: bool = False) -> Any:
    """SmolVLM2 and Idefics3."""
    words = tf.LlamaConfig(tie_word_embeddings=tied, **text)
    return kind(text_config=words, vision_config=vision, scale_factor=scale, tie_word_embeddings=tied)


def configs() -> Iterator[tuple[str, Any]]:
    small_eyes = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
    large_eyes = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
    yield "Qwen2.5-VL-3B", qwen2_5(language(2048, 11008, 36, 16, 2, vocab_size=151936), True)
    yield "Qwen2.5-VL-7B", qwen2_5(language(3584, 18944, 28, 28, 4, vocab_size=152064), False)
    yield "Qwen3-VL-2B", qwen3(language(2048, 6144, 28, 16, 8), small_eyes, True)
    yield "Qwen3-VL-4B", qwen3(language(2560, 9728, 36, 32, 8), small_eyes, True)
    yield "Qwen3-VL-8B", qwen3(language(4096, 12288, 36, 32, 8), large_eyes, False)
    smol, words = tf.SmolVLMConfig, {"vocab_size": 49280}
    yield "SmolVLM2-256M", small(language(576, 1536, 30, 9, 3, **words), BASE, 4, smol)
    yield "SmolVLM2-500M", small(language(960, 2560, 32, 15, 5, **words), BASE, 4, smol)
    seen = {**SO400M, "image_size": 384, "patch_size": 14}
    yield "SmolVLM2-2.2B", small(language(2048, 8192, 24, 32, 32, **words), seen, 3, smol)
    seen = {**SO400M, "image_size": 364, "patch_size": 14}
    text = language(4096, 14336, 32, 32, 8, vocab_size=128259)
    yield "Idefics3-8B", small(text, seen, 2, tf.Idefics3Config)
    clip = tf.CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, patch_size=14,
                               num_attention_heads=16, image_size=336, projection_dim=768)  # fmt: skip
    vicuna = tf.LlamaConfig(**language(4096, 11008, 32, 32, 32, vocab_size=32064))
    yield "LLaVA-1.5-7B", tf.LlavaConfig(vision_config=clip, text_config=vicuna)
    mistral = tf.MistralConfig(**language(4096, 14336, 32, 32, 8, vocab_size=32064))
    yield "LLaVA-NeXT-7B (Mistral)", tf.LlavaNextConfig(vision_config=clip, text_config=mistral)
    siglip = tf.SiglipVisionConfig(**SO400M | {"num_hidden_layers": 26}, image_size=384, patch_size=14,
                                   vision_use_head=False)  # fmt: skip
    for size, shape, tied in (
        ("0.5B", language(896, 4864, 24, 14, 2, vocab_size=151936), True),
        ("7B", language(3584, 18944, 28, 28, 4, vocab_size=152064), False),
    ):
        qwen2 = tf.Qwen2Config(**shape, tie_word_embeddings=tied)
        whole = tf.LlavaOnevisionConfig(vision_config=siglip, text_config=qwen2, tie_word_embeddings=tied)
        yield f"LLaVA-OneVision-{size}", whole


def counted(config: Any, rank: int = LoRA().rank) -> dict[str, float]:
    """Parameters, those of a LoRA of `rank` on the language model, and gibibytes of each way to hold them."""
    with torch.device("meta"):
        network = tf.AutoModelForImageTextToText.from_config(config)
    head = network.get_output_embeddings()
    whole = sum(p.numel() for p in network.parameters())
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) and m is not head}
    linear = sum(m.weight.numel() for m in layers.values())
    lora = sum(
        rank * (m.in_features + m.out_features) for n, m in layers.items() if not re.fullmatch(EYES, n)
    )
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * width * 2
    four = (whole - linear) * 2 + linear * FOUR_BITS
    return {
        "parameters": whole,
        "lora": lora,
        "bfloat16": whole * 2 / 2**30,
        "4bit": four / 2**30,
        "training": (whole * 2 + lora * 16) / 2**30,  # float32: weight, gradient, two moments
        "training 4bit": (four + lora * 16) / 2**30,
        "cache": cache * 1000 / 2**20,
    }


def row(name: str, config: Any) -> str:
    n = counted(config)
    sizes = [f"{n[k]:.1f} GiB" for k in ("bfloat16", "4bit", "training", "training 4bit")]
    count = f"{n['parameters'] / 1e9:.2f} B", f"{n['lora'] / 1e6:.0f} M"
    return f"| {' | '.join([name, *count, *sizes])} | {n['cache']:.0f} MiB |"


def table() -> str:
    lines = [
        "| policy | parameters | LoRA, rank 16 | drafts, bfloat16 | drafts, 4-bit | training, bfloat16 "
        "| training, 4-bit | cache per 1000 tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(row(name, config) for name, config in configs())])


if __name__ == "__main__":
    print(table())

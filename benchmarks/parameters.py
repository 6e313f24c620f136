"""How many parameters the published checkpoints have, and what they take up in half precision.

    python benchmarks/parameters.py

Every network is built from its published settings on torch's "meta" device, where weights have a shape and
no memory, and counted as its file has it (SD 3.5 keeps its positions there). Settings that are the class's
own defaults are left out: in diffusers those of FLUX.1, Qwen-Image, Z-Image and PixArt-Sigma are these
models'. The others are the values of the config.json in the checkpoint named beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers

GIB = 2**30


def clip(size: str) -> Any:
    """The text encoders of openai/clip-vit-large-patch14 ("L") and laion/CLIP-ViT-bigG-14 ("G")."""
    settings = {"L": (768, 3072, 12, 12), "G": (1280, 5120, 32, 20)}[size]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    named: dict[str, Any] = dict(zip(names, settings, strict=True))
    config = transformers.CLIPTextConfig(**named, projection_dim=settings[0])
    return transformers.CLIPTextModelWithProjection(config)


def t5() -> Any:
    """The encoder of google/t5-v1_1-xxl."""
    return transformers.T5EncoderModel(
        transformers.T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                              vocab_size=32128, feed_forward_proj="gated-gelu"))  # fmt: skip


def autoencoder(channels: int) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip


def sd15() -> Any:
    """stable-diffusion-v1-5: the class's default blocks, with its text's width."""
    return diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def sdxl() -> Any:
    """stabilityai/stable-diffusion-xl-base-1.0."""
    return diffusers.UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816)  # fmt: skip


def sd35() -> Any:
    """stabilityai/stable-diffusion-3.5-medium."""
    return diffusers.SD3Transformer2DModel(
        sample_size=128, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
        num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536,
        pooled_projection_dim=2048, pos_embed_max_size=384, qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)))  # fmt: skip


def pixart() -> Any:
    """PixArt-alpha/PixArt-Sigma-XL-2-1024-MS."""
    return diffusers.PixArtTransformer2DModel(sample_size=128, caption_channels=4096)


def qwen_vl() -> Any:
    """Qwen/Qwen2.5-VL-7B-Instruct."""
    return transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(
        text_config={"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                     "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
                     "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                       "out_hidden_size": 3584}, tie_word_embeddings=False))  # fmt: skip


def qwen3() -> Any:
    """Qwen/Qwen3-4B."""
    return transformers.Qwen3Model(transformers.Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=151936))  # fmt: skip


CHECKPOINTS: dict[str, tuple[Callable[[], Any], ...]] = {  # denoiser, text encoders ..., autoencoder
    "Stable Diffusion 1.5": (sd15, lambda: clip("L"), lambda: autoencoder(4)),
    "SDXL base": (sdxl, lambda: clip("L"), lambda: clip("G"), lambda: autoencoder(4)),
    "SD 3.5 medium": (sd35, lambda: clip("L"), lambda: clip("G"), t5, lambda: autoencoder(16)),
    "FLUX.1 dev": (lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
                   lambda: clip("L"), t5, lambda: autoencoder(16)),
    "FLUX.1 schnell": (diffusers.FluxTransformer2DModel, lambda: clip("L"), t5, lambda: autoencoder(16)),
    "PixArt-Sigma XL": (pixart, t5, lambda: autoencoder(4)),
    "Qwen-Image": (diffusers.QwenImageTransformer2DModel, qwen_vl, diffusers.AutoencoderKLQwenImage),
    "Z-Image": (diffusers.ZImageTransformer2DModel, qwen3, lambda: autoencoder(16)),
}  # fmt: skip


def stored(network: Any) -> int:
    """Numbers in the network's file: its parameters, and what else it keeps there."""
    kept = network.state_dict().keys()
    buffers = sum(buffer.numel() for name, buffer in network.named_buffers() if name in kept)
    return buffers + sum(p.numel() for p in network.parameters())


def main() -> None:
    print(
        "checkpoint             denoiser  text encoders  autoencoder     total  bf16 weights  denoiser alone"
    )
    for name, builders in CHECKPOINTS.items():
        with torch.device("meta"):
            counts = [stored(build()) for build in builders]
        first, *texts, last = counts
        print(f"{name:20} {first / 1e9:8.2f} B {sum(texts) / 1e9:12.2f} B {last / 1e9:10.2f} B"
              f" {sum(counts) / 1e9:7.2f} B {2 * sum(counts) / GIB:9.1f} GiB {2 * first / GIB:11.1f} GiB",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

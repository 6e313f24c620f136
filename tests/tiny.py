"""Tiny random pipelines of the real classes, with real tokenizers: what the parity tests and the benchmark run on.

Everything is made in memory from a seed. `saved` writes a pipeline to disk as a user would find it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

TEXT_LENGTH = 24  # tokens that the tiny CLIP reads, start and end included


def clip_tokenizer() -> CLIPTokenizer:
    """Byte level with no merges: every text has tokens, one a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: k for k, word in enumerate(words)}, merges=[], model_max_length=TEXT_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """One token a character, as a unigram vocabulary."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127))]
    return T5Tokenizer(vocab=[(piece, 0.0 if k < 3 else -2.0) for k, piece in enumerate(pieces)], extra_ids=0,
                       model_max_length=64)


def clip_config(width: int, projection: int | None = None) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH, projection_dim=projection or width, bos_token_id=0, eos_token_id=1,
        pad_token_id=1)  # fmt: skip


def autoencoder(channels: int = 4, sample: int = 16, scale: float = 0.18215, shift: float | None = None) -> AutoencoderKL:
    """A factor of 2 between pixels and latents."""
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=4, sample_size=sample,
        scaling_factor=scale, shift_factor=shift, use_quant_conv=shift is None, use_post_quant_conv=shift is None,
    ).eval()  # fmt: skip


def sd(prediction: str = "epsilon", *, seed: int = 0, width: int = 16, sample: int = 8,
       **scheduler: Any) -> StableDiffusionPipeline:
    """Stable Diffusion classes; `prediction` epsilon (1.x, 2-base) or v_prediction (2.x); latents [4, sample, sample]."""
    torch.manual_seed(seed)
    text = 32
    unet = UNet2DConditionModel(
        sample_size=sample, block_out_channels=(width, 2 * width), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text, attention_head_dim=2)  # fmt: skip
    louder(unet, "attn2.to_out", 20.0)
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
                "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction}
    return StableDiffusionPipeline(
        vae=autoencoder(sample=2 * sample), text_encoder=CLIPTextModel(clip_config(text)).eval(),
        tokenizer=clip_tokenizer(), unet=unet.eval(), scheduler=DDIMScheduler(**settings | scheduler),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)  # fmt: skip


def sd3(t5: bool = True, *, seed: int = 0, layers: int = 2, heads: int = 4, sample: int = 8,
        **scheduler: Any) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 classes, with or without the third (T5) text encoder; latents [4, sample, sample]."""
    torch.manual_seed(seed)
    text, joint = 16, 32
    transformer = SD3Transformer2DModel(
        sample_size=sample, patch_size=2, in_channels=4, out_channels=4, num_layers=layers, attention_head_dim=8,
        num_attention_heads=heads, joint_attention_dim=joint, caption_projection_dim=8 * heads,
        pooled_projection_dim=2 * text, pos_embed_max_size=2 * sample, qk_norm="rms_norm")  # fmt: skip
    louder(transformer, "proj_out", 4.0)
    first, second = (CLIPTextModelWithProjection(clip_config(text, text)).eval() for _ in range(2))
    third = T5EncoderModel(T5Config(vocab_size=97, d_model=joint, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        vae=autoencoder(sample=2 * sample, scale=1.5305, shift=0.0609), text_encoder=first, tokenizer=clip_tokenizer(),
        text_encoder_2=second, tokenizer_2=clip_tokenizer(), text_encoder_3=third if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None)  # fmt: skip


def louder(network: torch.nn.Module, name: str, factor: float) -> None:
    """Multiply the weights whose name contains `name`: a random network otherwise hardly listens to its text."""
    with torch.no_grad():
        for key, value in network.named_parameters():
            if name in key:
                value.mul_(factor)


def saved(pipe: DiffusionPipeline, folder: Path | str) -> Path:
    """The pipeline written to `folder` as safetensors."""
    pipe.save_pretrained(folder, safe_serialization=True)
    return Path(folder)

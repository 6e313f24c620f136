"""Tiny random pipelines of the real classes, with real tokenizers, for the parity tests and the benchmark.

Everything is made in memory from a seed; `saved` writes a pipeline to disk as a user would find it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
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

CLIP_LENGTH = 24  # tokens that the tiny CLIP reads, start and end included
T5_LENGTH = 512


def sd(prediction: str = "epsilon", *, seed: int = 0, width: int = 16, sample: int = 8,
       **scheduler: Any) -> StableDiffusionPipeline:  # fmt: skip
    """Stable Diffusion classes, latents [4, sample, sample]; epsilon (1.x, 2-base) or v_prediction (2.x)."""
    torch.manual_seed(seed)
    text = 32
    unet = UNet2DConditionModel(
        sample_size=sample,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text,
        attention_head_dim=2,
    )
    louder(unet, "attn2.to_out", 20.0)
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction,
    }
    return StableDiffusionPipeline(
        vae=autoencoder(2 * sample, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(clip_config(text)).eval(),
        tokenizer=clip_tokenizer(),
        unet=unet.eval(),
        scheduler=DDIMScheduler(**settings | scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(prediction: str = "epsilon", *, seed: int = 0, width: int = 16, sample: int = 8, zeros: bool = True,
         statistics: bool = False) -> StableDiffusionXLPipeline:  # fmt: skip
    """Stable Diffusion XL classes, latents [4, sample, sample]; `statistics`: of latents, in the decoder."""
    torch.manual_seed(seed)
    text, times = 16, 8
    unet = UNet2DConditionModel(
        sample_size=sample,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=2 * text,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=times,
        projection_class_embeddings_input_dim=text + 6 * times,
    )
    louder(unet, "attn2.to_out", 20.0)
    louder(unet, "add_embedding", 3.0)
    known = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.8, 1.1, 0.9, 1.3]}
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder(2 * sample, scaling_factor=0.13025, **(known if statistics else {})),
        text_encoder=CLIPTextModel(clip_config(text)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(text)).eval(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def sd3(t5: int = T5_LENGTH, *, seed: int = 0, layers: int = 2, heads: int = 4, sample: int = 8,
        **scheduler: Any) -> StableDiffusion3Pipeline:  # fmt: skip
    """Stable Diffusion 3 classes, latents [4, sample, sample]; `t5` is T5's length, 0 leaves T5 out."""
    torch.manual_seed(seed)
    text, joint = 16, 32
    transformer = SD3Transformer2DModel(
        sample_size=sample,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=heads,
        joint_attention_dim=joint,
        caption_projection_dim=8 * heads,
        pooled_projection_dim=2 * text,
        pos_embed_max_size=2 * sample,
        qk_norm="rms_norm",
    )
    louder(transformer, "proj_out", 4.0)
    third = T5Config(vocab_size=97, d_model=joint, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        vae=autoencoder(2 * sample, scaling_factor=1.5305, shift_factor=0.0609,
                        use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_config(text)).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(text)).eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(third).eval() if t5 else None,
        tokenizer_3=t5_tokenizer(t5) if t5 else None,
    )  # fmt: skip


def saved(pipe: DiffusionPipeline, folder: Path | str) -> Path:
    """The pipeline written to `folder` as safetensors."""
    pipe.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def louder(network: torch.nn.Module, name: str, factor: float) -> None:
    """Multiply the weights whose name contains `name`: a random network hardly listens to its text."""
    with torch.no_grad():
        for key, value in network.named_parameters():
            if name in key:
                value.mul_(factor)


def autoencoder(size: int, blocks: int = 2, **settings: Any) -> AutoencoderKL:
    """4 latent channels, a factor of 2 ** (blocks - 1) between pixels and latents."""
    return AutoencoderKL(
        sample_size=size,
        block_out_channels=(*[8] * (blocks - 1), 16),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        norm_num_groups=4,
        **settings,
    ).eval()


def clip_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """Byte level with no merges: every text has tokens, one a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {word: k for k, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CLIP_LENGTH)


def t5_tokenizer(length: int) -> T5Tokenizer:
    """One token a character, as a unigram vocabulary."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127))]
    vocab = [(piece, 0.0 if k < 3 else -2.0) for k, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)

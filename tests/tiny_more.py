"""Tiny random pipelines of the newer families, beside those of tiny.py, and how each is told its guidance."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny import T5_LENGTH, autoencoder, clip_config, clip_tokenizer, louder, t5_tokenizer
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
FLUX_LATENTS = {"use_quant_conv": False, "use_post_quant_conv": False}
PIXELS = dict.fromkeys(("flux", "qwen", "z"), 64)  # side of the tests' images; others' folders say it


def flux(dev: bool = True, t5: int = T5_LENGTH, *, seed: int = 0, layers: int = 1, heads: int = 4,
         **scheduler: Any) -> FluxPipeline:  # fmt: skip
    """FLUX.1 classes, dev (told a guidance scale, dynamic shift) or schnell; `t5` is T5's length."""
    torch.manual_seed(seed)
    text, joint = 16, 32
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=8,
        num_attention_heads=heads,
        joint_attention_dim=joint,
        pooled_projection_dim=text,
        guidance_embeds=dev,
        axes_dims_rope=(2, 2, 4),
    )
    louder(transformer, "proj_out", 3.0)
    louder(transformer, "context_embedder", 4.0)
    louder(transformer, "time_text_embed", 3.0)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC if dev else {"shift": 1.0}) | scheduler),
        vae=autoencoder(64, blocks=4, scaling_factor=0.3611, shift_factor=0.1159, **FLUX_LATENTS),
        text_encoder=CLIPTextModel(clip_config(text)).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(joint),
        tokenizer_2=t5_tokenizer(t5),
        transformer=transformer.eval(),
    )


def pixart(*, seed: int = 0, layers: int = 2, heads: int = 4, sample: int = 8, learned: bool = True,
           **scheduler: Any) -> PixArtSigmaPipeline:  # fmt: skip
    """PixArt-Sigma classes, latents [4, sample, sample]; `learned`: a second half of channels."""
    torch.manual_seed(seed)
    joint = 32
    transformer = PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8 if learned else 4,
        num_layers=layers,
        norm_num_groups=8,
        cross_attention_dim=8 * heads,
        sample_size=sample,
        caption_channels=joint,
    )
    louder(transformer, "attn2.to_out", 20.0)
    louder(transformer, "attn2.to_k", 8.0)
    louder(transformer, "caption_projection", 3.0)
    settings = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    return PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(T5_LENGTH),
        text_encoder=t5_encoder(joint),
        vae=autoencoder(2 * sample, scaling_factor=0.13025),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(**settings | scheduler),
    )


def z_image(turbo: bool = True, *, seed: int = 0, layers: int = 1, heads: int = 4,
            **scheduler: Any) -> ZImagePipeline:  # fmt: skip
    """Z-Image classes; the Turbo release shifts by 3, the base by 6."""
    torch.manual_seed(seed)
    tokenizer = chat_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=8 * heads,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=heads,
        n_kv_heads=heads,
        cap_feat_dim=32,
        axes_dims=[2, 2, 4],
        axes_lens=[1024, 512, 512],
    )
    with torch.no_grad():
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_()
    for name, factor in {"attention_norm2": 3.0, "norm_q": 2.0, "norm_k": 2.0, "final_layer": 1.5}.items():
        louder(transformer, name, factor)
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=8,
        **qwen_width(),
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0 if turbo else 6.0} | scheduler),
        vae=autoencoder(64, blocks=4, scaling_factor=0.3611, shift_factor=0.1159, **FLUX_LATENTS),
        text_encoder=Qwen3Model(text).eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


def qwen_image(*, seed: int = 0, layers: int = 2, heads: int = 4, **scheduler: Any) -> QwenImagePipeline:
    """Qwen-Image classes, with its video autoencoder."""
    torch.manual_seed(seed)
    tokenizer = chat_tokenizer()
    marks = {f"{mark}_token_id": tokenizer.eos_token_id for mark in ("bos", "eos", "image", "video")}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    text = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
            **qwen_width(),
            **marks,
        },
        **marks,
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=heads,
        joint_attention_dim=32,
        axes_dims_rope=(2, 2, 4),
    )
    for name, factor in {"norm_added": 3.0, "norm_q": 3.0, "add_v_proj": 6.0, "attn.to_out": 3.0}.items():
        louder(transformer, name, factor)
    louder(transformer, "proj_out", 3.0)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[False, False, False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.8, 1.1, 0.9, 1.3],
    )
    louder(vae, "decoder.conv_out.weight", 2.6)  # else the pictures are nearly grey
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC | {"shift_terminal": 0.02} | scheduler),
        vae=vae.eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(text).eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


def qwen_width() -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


def t5_encoder(width: int) -> T5EncoderModel:
    settings = T5Config(vocab_size=97, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return T5EncoderModel(settings).eval()


def chat_tokenizer() -> Qwen2Tokenizer:
    """Byte level with no merges, one token a character, and Qwen's marks and template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: k for k, word in enumerate(["<|endoftext|>", *letters])}
    made = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=1024)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def call_options(pipe: Any, scale: float, negative: str | None, count: int) -> dict[str, Any]:
    """What pipe(...) is told for CFG(scale, negative), `count` prompts and the size of the tests."""
    negatives = None if negative is None else [negative] * count
    match type(pipe).__name__:
        case "FluxPipeline" | "QwenImagePipeline":  # without a negative prompt they leave guidance out
            side = PIXELS["flux"]
            negatives = None if scale == 1 else [negative or ""] * count
            told = {"true_cfg_scale": scale, "negative_prompt": negatives, "height": side, "width": side}
            schnell = "Flux" in type(pipe).__name__ and not pipe.transformer.config.guidance_embeds
            return {**told, "max_sequence_length": 256} if schnell else told
        case "ZImagePipeline":
            side = PIXELS["z"]
            return {"guidance_scale": scale - 1, "negative_prompt": negatives, "height": side, "width": side}
        case "PixArtSigmaPipeline":
            return {
                "guidance_scale": scale,
                "negative_prompt": negative or "",
                "use_resolution_binning": False,
            }
        case _:
            return {"guidance_scale": scale, "negative_prompt": negatives}

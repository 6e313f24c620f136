"""Backbones and a policy of the published sizes (or tiny ones), with random weights, made where they run.

Nothing is read from disk. Tokenizers know a few hundred words, one token each, so that a draft of n tokens
is n - 1 words for every text encoder; every other size is the published one. Weights are drawn on the device
in the dtype asked for: no float32 copy, no copying over.

Where the full sizes are from: the config.json files of SDXL base 1.0, SD3.5 medium (its transformer as in
FastVideo's `SD3Transformer2DArchConfig`) and Qwen2.5-VL-3B-Instruct. `PARAMETERS` are the published counts of
SDXL's UNet and of the policy; tests/runs/test_full_size.py compares. What text encoders add to a step is
small, and the sizes of theirs are the published ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from promptloop.policies.message import KEEP, SYSTEM, USER
from promptloop.policies.mllm import Mllm
from promptloop.policies.processor import image_only

df: Any = diffusers
tf: Any = transformers
PARAMETERS = {"unet": 2_567_463_684, "policy": 3_754_622_976}
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
QUERIES = [f"a {first} {second}" for first in SYLLABLES[:8] for second in SYLLABLES[8:12]]

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "projection_dim": 768, "vocab_size": 49408, "max_position_embeddings": 77}  # fmt: skip
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
          "projection_dim": 1280, "vocab_size": 49408, "max_position_embeddings": 77,
          "hidden_act": "gelu"}  # fmt: skip
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
       "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
       "sample_size": 1024}  # fmt: skip
TINY_CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "projection_dim": 16, "vocab_size": 512, "max_position_embeddings": 77}  # fmt: skip
TINY_VAE = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
            "sample_size": 32}  # fmt: skip


@final
@dataclass(frozen=True)
class Shapes:
    """One size of everything. `picture` is the side in pixels at which the policy sees the estimate."""

    clip_l: dict[str, Any]
    clip_g: dict[str, Any]
    t5: dict[str, Any]
    vae: dict[str, Any]
    unet: dict[str, Any]
    transformer: dict[str, Any]
    language: dict[str, Any]
    vision: dict[str, Any]
    sections: tuple[int, ...]
    picture: int


FULL = Shapes(
    clip_l=CLIP_L,
    clip_g=CLIP_G,
    t5={"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu"},
    vae=VAE,
    unet={"sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
          "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
          "cross_attention_dim": 2048, "addition_time_embed_dim": 256,
          "projection_class_embeddings_input_dim": 1280 + 6 * 256,
          "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
          "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
    transformer={"sample_size": 128, "in_channels": 16, "out_channels": 16, "patch_size": 2, "num_layers": 24,
                 "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
                 "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
                 "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
    language={"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
              "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128000,
              "rms_norm_eps": 1e-6},
    vision={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
            "out_hidden_size": 2048, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2},
    sections=(16, 24, 24),
    picture=448,
)  # fmt: skip

TINY = Shapes(
    clip_l=TINY_CLIP,
    clip_g=TINY_CLIP,
    t5={"vocab_size": 512, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    vae=TINY_VAE,
    unet={"sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
          "transformer_layers_per_block": (1, 2), "attention_head_dim": (2, 4), "cross_attention_dim": 32,
          "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16 + 6 * 8,
          "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
          "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
    transformer={"sample_size": 16, "in_channels": 16, "out_channels": 16, "patch_size": 2, "num_layers": 2,
                 "attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 32,
                 "caption_projection_dim": 32, "pooled_projection_dim": 32, "pos_embed_max_size": 32,
                 "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
    language={"vocab_size": 700, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    vision={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 8,
            "out_hidden_size": 48, "window_size": 32, "fullatt_block_indexes": [1]},
    sections=(2, 2, 2),
    picture=32,
)  # fmt: skip

SIZES = {"full": FULL, "tiny": TINY}


# --- tokenizers


def words() -> list[str]:
    """Every word and mark of the messages and queries, then made-up words: 490 in all."""
    split = pre_tokenizers.Whitespace()
    texts = [SYSTEM, USER, KEEP, *QUERIES, "user assistant system", *map(str, range(101))]
    known = [word for text in texts for word, _ in split.pre_tokenize_str(text)]
    made = [first + second for first in SYLLABLES for second in SYLLABLES]
    return list(dict.fromkeys([*known, *made]))[:490]


def tokenizer(*special: str, frame: str | None = None, length: int = 4096) -> Any:
    """A word a token; `special` tokens first (unknown, padding, end, others), `frame` as in "<s> $A </s>"."""
    names = [*special, *words()]
    bare = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=special[0]))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    if frame is not None:
        marks = [(mark, names.index(mark)) for mark in frame.split() if mark != "$A"]
        bare.post_processor = processors.TemplateProcessing(single=frame, special_tokens=marks)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=bare, unk_token=special[0], pad_token=special[1], eos_token=special[2],
        additional_special_tokens=list(special[3:]), model_max_length=length)  # fmt: skip


def clip_tokenizer() -> Any:
    return tokenizer("<unk>", "<pad>", "<end>", "<start>", frame="<start> $A <end>", length=77)


# --- networks


@contextmanager
def made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Inside, new weights are of this dtype, on this device, from seed 0."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def clip_text(settings: dict[str, Any], *, projected: bool) -> Any:
    known = clip_tokenizer()
    start, end, pad = known.convert_tokens_to_ids(["<start>", "<end>", "<pad>"])
    config = tf.CLIPTextConfig(**settings, bos_token_id=start, eos_token_id=end, pad_token_id=pad)
    return (tf.CLIPTextModelWithProjection if projected else tf.CLIPTextModel)(config)


def sdxl(shapes: Shapes, device: str, dtype: torch.dtype) -> Any:
    """Stable Diffusion XL: 1024 x 1024 at full size, Euler."""
    scheduler = df.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        timestep_spacing="leading")  # fmt: skip
    with made_on(device, dtype):
        unet = df.UNet2DConditionModel(
            addition_embed_type="text_time", use_linear_projection=True, **shapes.unet)  # fmt: skip
        first, second = clip_text(shapes.clip_l, projected=False), clip_text(shapes.clip_g, projected=True)
        vae = df.AutoencoderKL(latent_channels=4, scaling_factor=0.13025, **shapes.vae)
    return df.StableDiffusionXLPipeline(
        vae=vae.eval(), text_encoder=first.eval(), text_encoder_2=second.eval(), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=unet.eval(), scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip


def sd3(shapes: Shapes, device: str, dtype: torch.dtype) -> Any:
    """Stable Diffusion 3.5 medium: 1024 x 1024 at full size, with T5."""
    scheduler = df.FlowMatchEulerDiscreteScheduler(shift=3.0)
    with made_on(device, dtype):
        transformer = df.SD3Transformer2DModel(**shapes.transformer)
        first, second = (clip_text(part, projected=True) for part in (shapes.clip_l, shapes.clip_g))
        third = tf.T5EncoderModel(tf.T5Config(**shapes.t5))
        vae = df.AutoencoderKL(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609,
                               use_quant_conv=False, use_post_quant_conv=False, **shapes.vae)  # fmt: skip
    return df.StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=scheduler, vae=vae.eval(), text_encoder=first.eval(),
        tokenizer=clip_tokenizer(), text_encoder_2=second.eval(), tokenizer_2=clip_tokenizer(),
        text_encoder_3=third.eval(),
        tokenizer_3=tokenizer("<unk>", "<pad>", "</s>", frame="$A </s>", length=512),
    )  # fmt: skip


BACKBONES: dict[str, Callable[[Shapes, str, torch.dtype], Any]] = {"sdxl": sdxl, "sd3.5-medium": sd3}


def policy(shapes: Shapes, device: str, dtype: torch.dtype, tokens: int) -> Mllm:
    """Qwen2.5-VL that writes drafts of exactly `tokens` tokens."""
    pad, end = "<|endoftext|>", "<|im_end|>"
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    known = tokenizer("<unk>", pad, end, "<|im_start|>", *marks)
    names = [f"{role}_token_id" for role in ("vision_start", "vision_end", "image", "video")]
    ids: dict[str, Any] = dict(zip(names, known.convert_tokens_to_ids(marks), strict=True))
    rope = {"rope_type": "default", "mrope_section": list(shapes.sections), "rope_theta": 1e6}
    ends = {"bos_token_id": None, "eos_token_id": known.eos_token_id, "pad_token_id": known.pad_token_id}
    config = tf.Qwen2_5_VLConfig(
        text_config=shapes.language | ends | {"rope_parameters": rope}, tie_word_embeddings=True,
        vision_config={"spatial_merge_size": 2, "temporal_patch_size": 2} | shapes.vision, **ids)  # fmt: skip
    with made_on(device, dtype):
        network = tf.Qwen2_5_VLForConditionalGeneration(config).eval()
    network.generation_config = tf.GenerationConfig(
        eos_token_id=known.eos_token_id, pad_token_id=known.pad_token_id)  # fmt: skip
    pixels = shapes.picture**2
    images = Qwen2VLImageProcessorPil(
        patch_size=shapes.vision["patch_size"], merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": pixels, "longest_edge": pixels})  # fmt: skip
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}"
        "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    processor = image_only(tf.Qwen2_5_VLProcessor)(images, known, chat_template=template)
    return Mllm(network, processor, 1.0, tokens, shapes.picture, fixed_length=True)

"""Tiny random vision-language models of real transformers classes, saved as ordinary folders.

Each has its real processor, a byte-level BPE and a chat template in its family's style.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from promptloop.policies.processor import image_only

TEXT = [
    "You write prompts for an image generator. Reply with one short line: the prompt, or keep.",
    "Wanted: a red circle left of a blue star\nPrompt now: two green squares\nDone: 35%\nNew prompt:",
    "keep one two three small large yellow triangle above below right of a striped background 0123456789",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PINPOINTS = [[32, 64], [64, 32]]
WIDTH = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def tokenizer(*special: str) -> tf.PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=names, initial_alphabet=alphabet)
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *special],
    )


def _save(network: tf.PreTrainedModel, processor: tf.ProcessorMixin, folder: Path) -> Path:
    words = processor.tokenizer
    network.generation_config = tf.GenerationConfig(
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        do_sample=True,
        top_k=5,
        temperature=0.3,
    )
    network.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    words = tokenizer("<image>")
    vision = tf.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=32,
    )
    text = tf.LlamaConfig(vocab_size=len(words), **WIDTH)
    config = tf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    images = LlavaImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = tf.LlavaProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )
    return _save(tf.LlavaForConditionalGeneration(config), processor, folder)


SIGHT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def _llava_tiles(
    folder: Path, config: type, network: type, processor: tf.ProcessorMixin, vision: tf.PretrainedConfig
) -> Path:
    """A LLaVA that cuts a picture into tiles and leaves the padding out."""
    words = processor.tokenizer
    whole = config(
        vision_config=vision,
        text_config=tf.LlamaConfig(vocab_size=len(words), **WIDTH),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        image_grid_pinpoints=PINPOINTS,
    )
    return _save(network(whole), processor, folder)


def llava_next(folder: Path) -> Path:
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
    )
    processor = tf.LlavaNextProcessor(
        images,
        tokenizer("<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )
    kinds = (tf.LlavaNextConfig, tf.LlavaNextForConditionalGeneration)
    return _llava_tiles(folder, *kinds, processor, tf.CLIPVisionConfig(projection_dim=32, **SIGHT))


def llava_onevision(folder: Path) -> Path:
    size = {"height": 32, "width": 32}
    processor = image_only(tf.LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=PINPOINTS),
        tokenizer("<image>", "<video>"),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )
    vision = tf.SiglipVisionConfig(vision_use_head=False, **SIGHT)
    kinds = (tf.LlavaOnevisionConfig, tf.LlavaOnevisionForConditionalGeneration)
    return _llava_tiles(folder, *kinds, processor, vision)


def _idefics(
    folder: Path, config: type, network: type, images: tf.ImageProcessingMixin, family: type
) -> Path:
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    settings = config(
        vision_config=vision,
        text_config=tf.LlamaConfig(vocab_size=len(words), pad_token_id=words.pad_token_id, **WIDTH),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    processor = family(images, words, image_seq_len=4, chat_template=CHATML.replace("IMAGE", "<image>"))
    return _save(network(settings), processor, folder)


def idefics3(folder: Path) -> Path:
    edge = {"longest_edge": 32}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    return _idefics(
        folder, tf.Idefics3Config, tf.Idefics3ForConditionalGeneration, images, tf.Idefics3Processor
    )


def smolvlm(folder: Path) -> Path:
    edge = {"longest_edge": 32}
    images = SmolVLMImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    family = image_only(tf.SmolVLMProcessor)
    return _idefics(folder, tf.SmolVLMConfig, tf.SmolVLMForConditionalGeneration, images, family)


def _qwen(folder: Path, config: type, network: type, family: type, vision: dict, **rope: bool) -> Path:
    words = tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = {
        f"{name}_token_id": words.convert_tokens_to_ids(token)
        for name, token in [
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        ]
    }
    turns = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0, **rope}
    ends = {"bos_token_id": None, "eos_token_id": words.eos_token_id}
    rows = len(words) + 24  # as in the real checkpoints, more rows than the tokenizer has tokens
    text = dict(vocab_size=rows, rope_parameters=turns, head_dim=12, **ends, **WIDTH)
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 1024, "longest_edge": 1024}
    )
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = image_only(family)(images, words, chat_template=template)
    settings = config(text_config=text, vision_config=vision, **ids)
    return _save(network(settings), processor, folder)


def qwen2_5_vl(folder: Path) -> Path:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 48,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return _qwen(
        folder, tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration, tf.Qwen2_5_VLProcessor, vision
    )


def qwen3_vl(folder: Path) -> Path:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 48,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    return _qwen(
        folder,
        tf.Qwen3VLConfig,
        tf.Qwen3VLForConditionalGeneration,
        tf.Qwen3VLProcessor,
        vision,
        mrope_interleaved=True,
    )


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": llava,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
}
MORE = {"llava_next": llava_next, "llava_onevision": llava_onevision}  # looked at more briefly


def build(family: str, folder: Path, seed: int = 0) -> Path:
    """One tiny model of `family`, saved to `folder` with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {**FAMILIES, **MORE}[family](folder)

"""``mini-vlm`` before it has learned anything: a LLaVA (CLIP + Llama) chat model of some million parameters,
its processor and chat template, and how a lesson is spelled in its tokens.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.policies.message import SYSTEM
from promptloop.policies.processor import load_processor
from promptloop.world.lessons import Lesson, lesson
from promptloop.world.scene import SIDE, random_scene
from promptloop.world.spelling import chat_tokenizer

PATCH = 16
IMAGE = "<image>" * ((SIDE // PATCH) ** 2)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sample_lessons(count: int, seed: int) -> list[Lesson]:
    rng = random.Random(f"{seed}/tokenizer")
    return [lesson(random_scene(rng) if i % 3 else None, rng.random(), rng) for i in range(count)]


def tokenizer(seed: int) -> Any:
    """The policy's tokenizer: the world's words are single tokens."""
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    texts = [t for item in sample_lessons(4000, seed) for turn in item.turns for t in turn]
    return PreTrainedTokenizerFast(
        tokenizer_object=chat_tokenizer([SYSTEM] * 3 + ["system", "user", "assistant"] * 3 + texts, special),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        padding_side="left",
    )


def blank(seed: int) -> tuple[Any, Any]:
    """The untrained network and its processor."""
    import transformers as tf
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    words = tokenizer(seed)
    vision = tf.CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = tf.LlamaConfig(
        vocab_size=len(words),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    config = tf.LlavaConfig(  # type: ignore[call-arg]  # image_token_id is image_token_index's other name
        vision_config=vision,
        text_config=text,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    network = tf.LlavaForConditionalGeneration(config)
    network.generation_config = tf.GenerationConfig(
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
    )
    images = LlavaImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = tf.LlavaProcessor(
        images,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return network, processor


class Spelling:
    """Lessons to token ids and labels; the text is what the chat template makes of the same messages."""

    def __init__(self, words: Any) -> None:
        self.words = words
        self.known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.known:
            if len(self.known) > 50_000:
                self.known.clear()
            self.known[text] = self.words(text, add_special_tokens=False).input_ids
        return self.known[text]

    def spell(self, item: Lesson) -> tuple[list[int], list[int]]:
        ids = list(self.ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"))
        labels = [-100] * len(ids)
        for k, (says, answer) in enumerate(item.turns):
            picture = IMAGE if item.sees and k == 0 else ""
            asked = self.ids(f"<|im_start|>user\n{picture}{says}<|im_end|>\n<|im_start|>assistant\n")
            told = self.ids(f"{answer}<|im_end|>")
            end = self.ids("\n")
            ids = ids + asked + told + end
            labels = labels + [-100] * len(asked) + told + [-100] * len(end)
        return ids, labels

    def batch(self, items: list[Lesson]) -> tuple[Tensor, Tensor, Tensor]:
        rows = [self.spell(item) for item in items]
        width = max(len(ids) for ids, _ in rows)
        pad = self.words.pad_token_id
        ids = torch.tensor([r + [pad] * (width - len(r)) for r, _ in rows])
        labels = torch.tensor([r + [-100] * (width - len(r)) for _, r in rows])
        lengths = torch.tensor([len(r) for r, _ in rows])
        return ids, labels, (torch.arange(width) < lengths[:, None]).long()


def told_loss(
    network: Any, spelling: Spelling, items: list[Lesson], shown: Tensor | None, device: str
) -> Tensor:
    """Mean cross-entropy of the answers of ``items``; ``shown`` [M, 3, H, W]: images of those that see."""
    ids, labels, mask = (t.to(device) for t in spelling.batch(items))
    sees = any(item.sees for item in items)
    pictures = shown.to(device) if shown is not None and sees else None
    hidden = network.model(input_ids=ids, attention_mask=mask, pixel_values=pictures, use_cache=False)[0]
    told = labels[:, 1:] != -100
    return F.cross_entropy(network.lm_head(hidden[:, :-1][told]), labels[:, 1:][told])


def loaded(folder: Path) -> tuple[Any, Any]:
    """The network in float32 and the processor that a stage of training saved."""
    from transformers import AutoModelForImageTextToText

    network: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = load_processor(str(folder))
    for where in ("is_local", "local_files_only"):  # how it was loaded, which is not to be saved
        processor.tokenizer.init_kwargs.pop(where, None)
    return network, processor

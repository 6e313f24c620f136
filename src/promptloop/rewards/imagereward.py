"""ImageReward v1.0 (Xu et al., arXiv 2304.05977): BLIP reads text and image together, an MLP says how people
would like the two.

The classes are transformers' own; only the names in the released checkpoint differ from theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import BertTokenizer
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from promptloop.rewards.batches import in_batches
from promptloop.rewards.files import weights_in
from promptloop.rewards.pictures import prepared
from promptloop.rewards.towers import beside
from promptloop.rewards.weights import blocks, fill, tensors_in

HUB, FILE, WORDS = "THUDM/ImageReward", "ImageReward.pt", "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the MLP's answers, in the release's ImageReward.py
LENGTH = 35  # tokens of a text that are read, start and end included
HEAD = 64  # width of an attention head, in ViT-L and in BERT
VISION = "blip.visual_encoder"
RENAMED = (  # the release's names (BLIP's, with timm's vision transformer) -> transformers'
    (rf"{VISION}\.cls_token", "vision.embeddings.class_embedding"),
    (rf"{VISION}\.pos_embed", "vision.embeddings.position_embedding"),
    (rf"{VISION}\.patch_embed\.proj\.(.+)", r"vision.embeddings.patch_embedding.\1"),
    (rf"{VISION}\.norm\.(.+)", r"vision.post_layernorm.\1"),
    (rf"{VISION}\.blocks\.(\d+)\.norm(\d)\.(.+)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (rf"{VISION}\.blocks\.(\d+)\.attn\.qkv\.(.+)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (rf"{VISION}\.blocks\.(\d+)\.attn\.proj\.(.+)", r"vision.encoder.layers.\1.self_attn.projection.\2"),
    (rf"{VISION}\.blocks\.(\d+)\.mlp\.(.+)", r"vision.encoder.layers.\1.mlp.\2"),
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
    (r"mlp\.layers\.(\d+)\.(.+)", r"mlp.\1.\2"),
)
UNUSED = re.compile(
    r"blip\.(vision_proj|text_proj)\.(weight|bias)|blip\.text_encoder\.embeddings\.position_ids"
)


@final
class ImageReward(nn.Module):
    """Images [B, 3, H, W] in [0, 1] and the user's queries to [B], about -2 to 2; differentiable.

    `batch` images are read together. Texts are cut after 35 tokens, as in the release.
    """

    differentiable = True

    def __init__(self, vision: Any, text: Any, mlp: nn.Sequential, tokenizer: Any, batch: int = 32) -> None:
        super().__init__()
        self.vision, self.text, self.mlp, self.tokenizer, self.batch = vision, text, mlp, tokenizer, batch

    @staticmethod
    def load(where: str | None = None, *, device: str | torch.device = "cpu") -> ImageReward:
        """The released weights (.pt, read without pickle's code, or .safetensors), frozen.

        where: a folder or file, or a hub id, which is downloaded (once); None: what the hub's cache has of
            THUDM/ImageReward. The words of bert-base-uncased are taken from vocab.txt beside the weights, or
            else from the hub's cache.
        ValueError: nothing is there, or tensors are missing, left over or of another shape.
        """
        file, words = ImageReward.read_from(where)
        made = from_state(tensors_in(file), str(file), BertTokenizer(vocab=str(words)))
        return made.requires_grad_(False).eval().to(device)

    @staticmethod
    def read_from(where: str | None = None) -> list[Path]:
        """Every file that decides a score: the weights and BERT's words."""
        file, asked = weights_in(where, "imagereward", HUB, FILE)
        return [file, beside(file, "vocab.txt", WORDS, asked)]

    def forward(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        return in_batches(self._scores, images, queries, self.batch)

    def _scores(self, images: Tensor, queries: list[str]) -> Tensor:
        at: Any = self.mlp[0].weight
        size = self.vision.config.image_size
        seen = self.vision(pixel_values=prepared(images.to(at), size)).last_hidden_state
        said = self.tokenizer(
            queries, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(at.device)
        read = self.text(
            input_ids=said.input_ids,
            attention_mask=said.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=at.device),
            is_decoder=False,  # every word sees every other
        )
        return (self.mlp(read.last_hidden_state[:, 0])[:, 0].float() - MEAN) / STD


def from_state(state: Mapping[str, Tensor], source: str, tokenizer: Any) -> ImageReward:
    """The reward with the tensors of a checkpoint in the released layout, of any size: the sizes are read off
    the tensors, and heads are 64 wide.
    """
    tensors = {renamed(name): value for name, value in state.items() if not UNUSED.fullmatch(name)}
    try:
        made = ImageReward(vision_of(tensors), text_of(tensors), mlp_of(tensors), tokenizer)
    except KeyError as error:
        raise ValueError(f"{source} is no ImageReward checkpoint: {error.args[0]!r} is missing") from None
    fill(made, tensors, source, "ImageReward")
    return made


def renamed(name: str) -> str:
    """transformers' name of a released tensor; others as they are."""
    for pattern, ours in RENAMED:
        if found := re.fullmatch(pattern, name):
            return found.expand(ours)
    return name


def vision_of(tensors: Mapping[str, Tensor]) -> BlipVisionModel:
    width, _, patch, _ = tensors["vision.embeddings.patch_embedding.weight"].shape
    places = tensors["vision.embeddings.position_embedding"].shape[1] - 1
    return BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=len(tensors["vision.encoder.layers.0.mlp.fc1.weight"]),
            num_hidden_layers=blocks(tensors, r"vision\.encoder\.layers\.(\d+)\..+"),
            num_attention_heads=max(1, width // HEAD),
            image_size=patch * round(places**0.5),
            patch_size=patch,
            layer_norm_eps=1e-6,
        )
    )


def text_of(tensors: Mapping[str, Tensor]) -> BlipTextModel:
    words, width = tensors["text.embeddings.word_embeddings.weight"].shape
    seen = tensors["text.encoder.layer.0.crossattention.self.key.weight"].shape[1]
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=seen,
        intermediate_size=len(tensors["text.encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=blocks(tensors, r"text\.encoder\.layer\.(\d+)\..+"),
        num_attention_heads=max(1, width // HEAD),
        max_position_embeddings=len(tensors["text.embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        bos_token_id=None,  # it only reads
        eos_token_id=None,
        sep_token_id=0,
        is_decoder=True,  # transformers gives its layers cross-attention only then
    )
    return BlipTextModel(config, add_pooling_layer=False)


def mlp_of(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """Linear layers without activations, where the release has them; between them it has dropout."""
    places = blocks(tensors, r"mlp\.(\d+)\..+")
    weights = {k: tensors.get(f"mlp.{k}.weight") for k in range(places)}
    if weights[0] is None:
        raise KeyError("mlp.layers.0.weight")
    layers = [nn.Identity() if w is None else nn.Linear(w.shape[1], w.shape[0]) for w in weights.values()]
    return nn.Sequential(*layers)

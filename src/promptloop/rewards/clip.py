"""Rewards that are a CLIP: PickScore, HPSv2 and v2.1, CLIPScore, and the cosine itself.

The network is transformers' CLIPModel; checkpoints may be in its names or in open_clip's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.clip.configuration_clip import CLIPConfig
from transformers.models.clip.modeling_clip import CLIPModel

from promptloop.names import first_line
from promptloop.rewards.open_clip import from_open_clip, is_open_clip
from promptloop.rewards.pictures import padded, prepared, processed
from promptloop.rewards.towers import TRANSFORMERS, Release, TwoTowers, unit
from promptloop.rewards.weights import blocks
from promptloop.rewards.words import Words

LAYER = r"encoder\.layers\.(\d+)\..+"


class ClipReward(TwoTowers):
    """A reward from CLIP's cosine of picture and text."""

    @classmethod
    def named(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return from_open_clip(tensors) if is_open_clip(tensors) else dict(tensors)

    @classmethod
    def built(cls, tensors: Mapping[str, Tensor], words: Words, folder: Path) -> nn.Module:
        return clip_of(tensors, words, config_in(folder, "clip"), cls.release)

    def scores(self, pixels: Tensor, ids: Tensor) -> Tensor:
        return self.scaled((self.seen(pixels) * self.said(ids)).sum(-1))

    def seen(self, pixels: Tensor) -> Tensor:
        """Pictures as points of the space that texts share, [B, D] of length 1."""
        return unit(
            self.network.visual_projection(self.network.vision_model(pixel_values=pixels).pooler_output)
        )

    def said(self, ids: Tensor) -> Tensor:
        """Texts as points of that space, [B, D] of length 1."""
        return unit(self.network.text_projection(self.network.text_model(input_ids=ids).pooler_output))

    @abstractmethod
    def scaled(self, cosine: Tensor) -> Tensor:
        """The reward on its own scale."""


@final
class PickScore(ClipReward):
    """PickScore v1 (Kirstain et al., arXiv 2305.01569): cosine times the learned scale, about 15 to 26."""

    release = Release("pickscore", "yuvalkirstain/PickScore_v1", TRANSFORMERS, processed, head=80)

    def scaled(self, cosine: Tensor) -> Tensor:
        return cosine * self.network.logit_scale.exp()


@final
class HPSv2(ClipReward):
    """HPS v2 (Wu et al., arXiv 2306.09341): the cosine, about 0.2 to 0.35; papers print it times 100."""

    release = Release("hpsv2", "xswu/HPSv2", ("HPS_v2_compressed.pt", *TRANSFORMERS), padded, head=80)

    def scaled(self, cosine: Tensor) -> Tensor:
        return cosine


@final
class HPSv21(ClipReward):
    """HPS v2.1: as v2, trained on more careful data, about 0.15 to 0.4."""

    release = Release("hpsv2.1", "xswu/HPSv2", ("HPS_v2.1_compressed.pt", *TRANSFORMERS), padded, head=80)

    def scaled(self, cosine: Tensor) -> Tensor:
        return cosine


@final
class CLIPScore(ClipReward):
    """CLIPScore (Hessel et al., arXiv 2104.08718): 2.5 max(cosine, 0) of ViT-B/32, 0 to 2.5, of the query
    after "A photo depicts", as its code writes. No gradient flows where the cosine is below 0.
    """

    release = Release(
        "clipscore",
        "openai/clip-vit-base-patch32",
        TRANSFORMERS,
        prepared,
        activation="quick_gelu",
        words="openai/clip-vit-base-patch32",
        before="A photo depicts ",
    )

    def scaled(self, cosine: Tensor) -> Tensor:
        return 2.5 * cosine.clamp(min=0)


@final
class ClipCosine(ClipReward):
    """The cosine of CLIP ViT-L/14, about 0.1 to 0.4: what reinforcement learning code calls CLIP score."""

    release = Release(
        "clip-cosine", "openai/clip-vit-large-patch14", TRANSFORMERS, processed, activation="quick_gelu"
    )

    def scaled(self, cosine: Tensor) -> Tensor:
        return cosine


def clip_of(tensors: Mapping[str, Tensor], words: Words, config: Any, release: Release) -> CLIPModel:
    """The network with the sizes of the tensors; heads and activation are the config's, or the release's."""
    rows, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    if words.rows > rows:
        raise ValueError(f"the tokenizer of {release.name} has {words.rows} words, the weights have {rows}")
    heads, activation = (
        (config.text_config.num_attention_heads, config.text_config.hidden_act)
        if config is not None
        else (heads_of(width, 64, release), release.activation)
    )
    text = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": len(tensors["text_model.encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": blocks(tensors, rf"text_model\.{LAYER}"),
        "num_attention_heads": heads,
        "hidden_act": activation,
        "max_position_embeddings": len(tensors["text_model.embeddings.position_embedding.weight"]),
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": words.end,  # a text's embedding is where it first stands
    }
    vision = vision_of(tensors, config, release)
    shared = len(tensors["visual_projection.weight"])
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=shared))


def vision_of(tensors: Mapping[str, Tensor], config: Any, release: Release) -> dict[str, Any]:
    """The settings of the tower that sees."""
    width, _, patch, _ = tensors["vision_model.embeddings.patch_embedding.weight"].shape
    places = len(tensors["vision_model.embeddings.position_embedding.weight"]) - 1
    heads, activation = (
        (config.vision_config.num_attention_heads, config.vision_config.hidden_act)
        if config is not None
        else (heads_of(width, release.head, release), release.activation)
    )
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": blocks(tensors, rf"vision_model\.{LAYER}"),
        "num_attention_heads": heads,
        "hidden_act": activation,
        "image_size": patch * round(places**0.5),
        "patch_size": patch,
        "projection_dim": len(tensors["visual_projection.weight"]),
    }


def heads_of(width: int, head: int, release: Release) -> int:
    """How many heads of the release's width there are; ValueError where it is no multiple of that."""
    if width % head:
        raise ValueError(
            f"a network {width} wide is not {release.name}'s release (heads of {head}), so its config.json "
            "is needed beside the weights"
        )
    return width // head


def config_in(folder: Path, family: str) -> Any:
    """The settings in the folder's config.json, or None where it has none; ValueError where they are another
    family's.
    """
    if not (folder / "config.json").is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}'s config.json cannot be read: {first_line(error)}") from error
    if config.model_type != family:
        raise ValueError(f"{folder}'s config.json is of a {config.model_type!r}, not of a {family!r}")
    return config

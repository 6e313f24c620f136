"""SigLIP (Zhai et al., arXiv 2303.15343) as a reward: the log-odds that picture and text belong together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from transformers.models.siglip.configuration_siglip import SiglipConfig
from transformers.models.siglip.modeling_siglip import SiglipModel

from promptloop.rewards.clip import LAYER, config_in
from promptloop.rewards.pictures import squeezed
from promptloop.rewards.towers import TRANSFORMERS, Release, TwoTowers, unit
from promptloop.rewards.weights import blocks
from promptloop.rewards.words import Words

HUB = "google/siglip-so400m-patch14-384"


@final
class SigLIP(TwoTowers):
    """exp(scale) cosine + bias, about -15 to 5; its sigmoid is the probability SigLIP was trained to give.

    The log-odds and not the probability, since that is 0 for nearly all pictures and has no slope there.
    """

    release = Release("siglip", HUB, TRANSFORMERS, squeezed, "gelu_pytorch_tanh", 72, HUB, "</s>")

    @classmethod
    def built(cls, tensors: Mapping[str, Tensor], words: Words, folder: Path) -> nn.Module:
        return siglip_of(tensors, config_in(folder, "siglip"), cls.release)

    def scores(self, pixels: Tensor, ids: Tensor) -> Tensor:
        seen = self.network.vision_model(pixel_values=pixels).pooler_output
        said = self.network.text_model(input_ids=ids).pooler_output
        cosine = (unit(seen) * unit(said)).sum(-1)
        return cosine * self.network.logit_scale.exp() + self.network.logit_bias


def siglip_of(tensors: Mapping[str, Tensor], config: Any, release: Release) -> SiglipModel:
    """The network with the sizes of the tensors; heads are the config's, or the release's."""
    rows, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    seen, _, patch, _ = tensors["vision_model.embeddings.patch_embedding.weight"].shape
    places = len(tensors["vision_model.embeddings.position_embedding.weight"])
    both = {
        name: {
            "hidden_size": wide,
            "intermediate_size": len(tensors[f"{name}_model.encoder.layers.0.mlp.fc1.weight"]),
            "num_hidden_layers": blocks(tensors, rf"{name}_model\.{LAYER}"),
            "num_attention_heads": max(1, wide // release.head)
            if config is None
            else getattr(config, f"{name}_config").num_attention_heads,
            "hidden_act": release.activation,
        }
        for name, wide in (("text", width), ("vision", seen))
    }
    text = {
        "vocab_size": rows,
        "max_position_embeddings": len(tensors["text_model.embeddings.position_embedding.weight"]),
        "projection_size": len(tensors["text_model.head.weight"]),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    vision = {"image_size": patch * round(places**0.5), "patch_size": patch}
    return SiglipModel(SiglipConfig(text_config=both["text"] | text, vision_config=both["vision"] | vision))

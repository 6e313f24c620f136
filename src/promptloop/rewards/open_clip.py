"""open_clip's names of a CLIP's tensors (ViT towers, as HPSv2 is released) to transformers' CLIPModel's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

RENAMED = (
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.weight", "vision_model.embeddings.patch_embedding.weight"),
    (r"visual\.ln_pre\.(.+)", r"vision_model.pre_layrnorm.\1"),
    (r"visual\.ln_post\.(.+)", r"vision_model.post_layernorm.\1"),
    (r"visual\.proj", "visual_projection.weight"),
    (r"visual\.transformer\.(.+)", r"vision_model.\1"),
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"ln_final\.(.+)", r"text_model.final_layer_norm.\1"),
    (r"text_projection", "text_projection.weight"),
    (r"transformer\.(.+)", r"text_model.\1"),
)
INSIDE = (
    (r"resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)
TURNED = {"visual_projection.weight", "text_projection.weight"}  # open_clip multiplies from the right


def is_open_clip(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("visual.") for name in state)


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by transformers' names: queries, keys and values apart, projections turned. Names that
    are not open_clip's stay as they are.
    """
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = renamed(name)
        if found := re.fullmatch(r"(.+self_attn\.)in_proj_(weight|bias)", ours):
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                made[f"{found[1]}{part}_proj.{found[2]}"] = piece
        else:
            made[ours] = value.T if ours in TURNED else value
    return made


def renamed(name: str) -> str:
    for pattern, ours in RENAMED:
        if found := re.fullmatch(pattern, name):
            name = found.expand(ours)
            break
    for pattern, ours in INSIDE:
        name = re.sub(pattern, ours, name)
    return name

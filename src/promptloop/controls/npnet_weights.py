"""NPNet's weights: our own folders, and the released .pth files, whose Swin has timm's names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from promptloop.controls.npnet import CHANNELS, NPNet, Shape
from promptloop.json_file import read_object
from promptloop.rewards.weights import fill, tensors_in

FILE, CONFIG = "npnet.safetensors", "npnet.json"
SWIN = r"unet_embedding\.swin"
BLOCK, OURS = rf"{SWIN}\.layers\.(\d+)\.blocks\.(\d+)", r"residual.swin.encoder.layers.\1.blocks.\2"
RENAMED = (  # the release's names (timm's Swin) -> ours (transformers'); the rest is in `renamed`
    (r"unet_svd\.(.+)", r"spectrum.\1"),
    (r"(?:embedding|embeeding)\.(.+)", r"text.\1"),  # the release's training script misspells it
    (rf"{SWIN}\.patch_embed\.proj\.(.+)", r"residual.swin.embeddings.patch_embeddings.projection.\1"),
    (rf"{SWIN}\.patch_embed\.norm\.(.+)", r"residual.swin.embeddings.norm.\1"),
    (rf"{BLOCK}\.norm1\.(.+)", rf"{OURS}.layernorm_before.\3"),
    (rf"{BLOCK}\.norm2\.(.+)", rf"{OURS}.layernorm_after.\3"),
    (rf"{BLOCK}\.attn\.proj\.(.+)", rf"{OURS}.attention.o_proj.\3"),
    (rf"{BLOCK}\.attn\.(relative_position_bias)_table", rf"{OURS}.attention.\3.\3_table"),
    (rf"{BLOCK}\.mlp\.(.+)", rf"{OURS}.mlp.\3"),
    (rf"{SWIN}\.norm\.(.+)", r"residual.swin.layernorm.\1"),
    (r"unet_embedding\.(upconv|downconv)\.(.+)", r"residual.\1.\2"),
)
UNUSED = (
    re.compile(  # of the release: a batch norm that nothing reads, the Swin's classes, what timm can make
        rf"unet_svd\.bn\..+|{SWIN}\.head\..+|{SWIN}\..+\.(relative_position_index|attn_mask)"
    )
)


def save(network: NPNet, folder: str | Path) -> None:
    """Writes npnet.safetensors and npnet.json (its Shape)."""
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().contiguous() for name, t in network.state_dict().items()}, where / FILE)
    (where / CONFIG).write_text(json.dumps(asdict(network.shape), indent=1), encoding="utf-8")


def load(where: str | Path, *, device: str | torch.device = "cpu") -> NPNet:
    """What `save` wrote (a folder), or a released .pth, read without pickle's code; frozen.

    ValueError: nothing is there, or tensors are missing, left over or of another shape.
    """
    place = Path(where).expanduser()
    if (place / CONFIG).is_file():
        said = read_object(place / CONFIG)
        sizes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in said.items()}
        made = NPNet(Shape(**sizes))
        fill(made, tensors_in(place / FILE), str(place), "NPNet")
    elif place.is_file():
        made = from_release(tensors_in(place), str(place))
    else:
        raise ValueError(f"no NPNet at {where}; give a folder with {CONFIG}, or a released .pth file")
    return made.requires_grad_(False).eval().to(device)


def from_release(state: Mapping[str, Tensor], source: str) -> NPNet:
    """The network with the tensors of a checkpoint in the released layout; the sizes are read off them."""
    try:
        made = NPNet(shape_of(state))
    except KeyError as error:
        raise ValueError(f"{source} is no NPNet checkpoint: {error.args[0]!r} is missing") from None
    fill(made, renamed(state), source, "NPNet")
    return made


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released tensors under our names, without those that nothing reads; unknown names as they are."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if UNUSED.fullmatch(name):
            continue
        if at := re.fullmatch(rf"{BLOCK}\.attn\.qkv\.(.+)", name):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                found[at.expand(rf"{OURS}.attention.{part}_proj.\3")] = rows
        elif at := re.fullmatch(rf"{SWIN}\.layers\.(\d+)\.downsample\.(.+)", name):
            # timm's stages begin with it, transformers' end with it
            found[f"residual.swin.encoder.layers.{int(at[1]) - 1}.downsample.{at[2]}"] = value
        else:
            ours = (m.expand(to) for pattern, to in RENAMED if (m := re.fullmatch(pattern, name)))
            found[next(ours, name)] = value
    return found


def shape_of(state: Mapping[str, Tensor]) -> Shape:
    """The sizes of a released checkpoint. KeyError naming a tensor that is missing."""
    swin = "unet_embedding.swin"
    blocks = {m.groups() for name in state if (m := re.match(rf"{BLOCK}\.", name))}
    depths = [sum(int(stage) == k for stage, _ in blocks) for k in range(len({stage for stage, _ in blocks}))]
    tables = [
        state[f"{swin}.layers.{k}.blocks.0.attn.relative_position_bias_table"]
        for k in range(max(len(depths), 1))
    ]
    width, _, patch, _ = state[f"{swin}.patch_embed.proj.weight"].shape
    rows = state["unet_embedding.upconv.weight"].shape[1]
    text = state[
        "embedding.linear.weight" if "embedding.linear.weight" in state else "embeeding.linear.weight"
    ]
    hidden, size = state["unet_svd.mlp1.0.weight"].shape
    return Shape(
        side=2 * size // CHANNELS,
        text=text.shape[1],
        image=rows * patch * 2 ** (len(depths) - 1),
        patch=patch,
        width=width,
        depths=tuple(depths),
        heads=tuple(table.shape[1] for table in tables),
        window=(round(len(tables[0]) ** 0.5) + 1) // 2,
        hidden=hidden,
        wide=len(state["unet_svd.mlp4.0.weight"]),
    )

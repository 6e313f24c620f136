"""MPS (Zhang et al., arXiv 2405.14705): CLIP's patches look at the words that a condition asks about.

The release is a pickled Python object, which is not read here: save its state_dict() once, in the release's
own environment, or take the safetensors of RE-N-Y/mpsv1 (the same tensors, behind "mps.").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptloop.rewards.clip import clip_of, config_in
from promptloop.rewards.pictures import processed
from promptloop.rewards.towers import COUNTERS, Release, TwoTowers, unit
from promptloop.rewards.weights import blocks
from promptloop.rewards.words import Words

CONDITION = (  # the release's, for the overall preference
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, "
    "instance, texture, quantity, attributes, position, number, location, word, things."
)
OPEN = 0.3  # in the release's evaluations; its forward pass, which trained it, has 0.01
HEAD = 64
ANGLES = "rotary_emb.inv_freq"  # saved in some versions; computed here


@final
class MPS(TwoTowers):
    """exp(scale) times the cosine of the text and of the picture as it looked at the text, about 0 to 20.

    A word is looked at where its largest product with a word of the condition is over `threshold` of the
    text's largest. The release divides by the largest of the whole batch; here of the text's own, as in its
    evaluations, which ask for one at a time.
    """

    release = Release(
        "mps", "RE-N-Y/mpsv1", ("MPS_overall_checkpoint.pth", "model.safetensors"), processed, head=80
    )
    condition, threshold = CONDITION, OPEN

    @classmethod
    def named(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        bare = {name.removeprefix("mps."): value for name, value in tensors.items()}
        kept = {n: v for n, v in bare.items() if not n.endswith(ANGLES) and not COUNTERS.fullmatch(n)}
        return {
            n.replace("cross_model.layers.", "cross.").replace(".fn.", ".").replace("model.", "clip.", 1)
            if n.startswith(("model.", "cross_model."))
            else n: v
            for n, v in kept.items()
        }

    @classmethod
    def length(cls, tensors: Mapping[str, Tensor]) -> int:
        return len(tensors["clip.text_model.embeddings.position_embedding.weight"])

    @classmethod
    def built(cls, tensors: Mapping[str, Tensor], words: Words, folder: Path) -> nn.Module:
        inner = {n.removeprefix("clip."): v for n, v in tensors.items() if n.startswith("clip.")}
        return Both(clip_of(inner, words, config_in(folder, "clip"), cls.release), tensors)

    def scores(self, pixels: Tensor, ids: Tensor) -> Tensor:
        clip = self.network.clip
        said = clip.text_model(input_ids=ids)
        asked = clip.text_model(input_ids=self.words([self.condition]).to(ids.device)).last_hidden_state
        text, wanted = clip.text_projection(said.last_hidden_state), clip.text_projection(asked)
        x = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)
        near = (text @ wanted[0].T).amax(-1)  # [B, T]
        shut = near / near.amax(1, keepdim=True) <= self.threshold
        for look, turn in self.network.cross:
            x = turn(look(x, text, shut))
        cosine = (unit(x[:, 0]) * unit(clip.text_projection(said.pooler_output))).sum(-1)
        return cosine * clip.logit_scale.exp()


@final
class Both(nn.Module):
    """CLIP, and the layers in which its picture looks at its text."""

    def __init__(self, clip: Any, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.clip, self.config = clip, clip.config
        layers = range(blocks(tensors, r"cross\.(\d+)\..+"))
        heads = len(tensors["cross.0.0.to_q.weight"]) // HEAD
        inner = tensors["cross.0.0.ff.2.weight"].shape[1]
        width = clip.config.projection_dim
        self.cross = nn.ModuleList(
            nn.ModuleList([Look(width, heads, inner), Turn(width, heads, inner)]) for _ in layers
        )


@final
class Look(nn.Module):
    """Patches [B, P, D] attend to words [B, T, D], all heads to the same keys; beside it a gated MLP."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * HEAD, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD, bias=False)
        self.to_out = nn.Linear(heads * HEAD, width, bias=False)
        ends = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.ff = nn.ModuleList([ends[0], nn.Identity(), ends[1]])

    def forward(self, x: Tensor, text: Tensor, shut: Tensor) -> Tensor:
        y = self.norm(x)
        keys, values = self.to_kv(text).chunk(2, -1)
        seen = attended(split(self.to_q(y)), keys, values, shut)
        return x + self.to_out(seen) + self.ff[2](gated(self.ff[0](y)))


@final
class Turn(nn.Module):
    """Patches attend to each other, with rotary positions, beside a gated MLP, from one projection."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.sizes = (heads * HEAD, HEAD, HEAD, 2 * inner)
        self.norm = nn.LayerNorm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(heads * HEAD, width, bias=False)
        self.ff_out = nn.ModuleList([nn.Identity(), nn.Linear(inner, width, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values, inner = self.fused_attn_ff_proj(self.norm(x)).split(self.sizes, -1)
        seen = attended(turned(split(queries)), turned(keys), values)
        return x + self.attn_out(seen) + self.ff_out[1](gated(inner))


def split(queries: Tensor) -> Tensor:
    """[B, P, heads * 64] to [B, heads, P, 64]."""
    return queries.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def attended(queries: Tensor, keys: Tensor, values: Tensor, shut: Tensor | None = None) -> Tensor:
    """[B, heads, P, 64] to keys and values [B, T, 64], but not to the words that are `shut` [B, T]."""
    products = torch.einsum("bhpd,btd->bhpt", queries, keys) / HEAD**0.5
    if shut is not None:
        products = products.masked_fill(shut[:, None, None], float("-inf"))
    return torch.einsum("bhpt,btd->bhpd", products.softmax(-1), values).transpose(1, 2).flatten(2)


def turned(x: Tensor) -> Tensor:
    """Rotary positions (Su et al., arXiv 2104.09864) along the second axis from the end, halves paired."""
    exact = torch.promote_types(x.dtype, torch.float32)  # half is too coarse to count in
    steps = torch.arange(0, HEAD, 2, device=x.device, dtype=exact) / HEAD
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] / 10000**steps
    cos, sin = (torch.cat([part, part], -1).to(x.dtype) for part in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def gated(x: Tensor) -> Tensor:
    """SwiGLU (Shazeer, arXiv 2002.05202), the gate in the second half."""
    value, gate = x.chunk(2, -1)
    return F.silu(gate) * value

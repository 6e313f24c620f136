"""The policy's eyes: its vision tower and projector, taught to name what stands where in its own words.

A pretrained MLLM brings a pretrained vision tower, aligned with its language. Without one, chats about images
teach the language and no sight: the model answers from the words alone (docs/log.md, seventh session). Here
the projected patches are compared with the embeddings of the language model, which has learned to talk
already, so that a patch says "red", "circle" and "top" in the way the words do.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptloop.world.autoencoder import pixels
from promptloop.world.fit import fit
from promptloop.world.scene import COLOURS, GROUNDS, PATTERNS, SHAPES, SIZES, Scene, random_scene

HELD_OUT = 256  # scenes at the end of the pool, for checks
HALF = 24  # sharp images in a batch, and as many estimates
NAMES: dict[str, tuple[str | None, ...]] = {  # None: no word for it, as captions leave out "plain"
    "kind": ("background", *SHAPES),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "pattern": (None, *PATTERNS[1:]),
    "outlined": (None, "outlined"),
    "column": ("left", None, "right"),
    "row": ("top", None, "bottom"),
    "ground": (None, *GROUNDS[1:]),
}
SIDE_PATCHES, AT = 4, (0, 1, 3)  # patches in a row, and which of them speaks for each of the three cells
SHARP = 8.0  # logits for a patch of the size of a word's embedding: it is to look like one
Pool = tuple[Tensor, Tensor, list[Scene]]  # estimates uint8 [N, 3, 64, 64], their progress [N], their scenes


@final
class Eyes(nn.Module):
    """Vision tower and projector of a LLaVA network, and the embeddings of the words for NAMES."""

    words: Tensor

    def __init__(self, network: Any, tokenizer: Any) -> None:
        super().__init__()
        self.vision = network.model.vision_tower
        self.projector = network.model.multi_modal_projector
        table = network.model.language_model.embed_tokens.weight.detach()
        known = [word for names in NAMES.values() for word in names]
        self.register_buffer("words", apart(torch.stack([meaning(table, tokenizer, w) for w in known])))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 16, names] of what the patches of ``images`` [B, 3, 64, 64] in [-1, 1] say."""
        patches = self.vision(pixel_values=images).last_hidden_state[:, 1:]
        return self.projector(patches) @ (SHARP * self.words.T)


def meaning(table: Tensor, tokenizer: Any, word: str | None) -> Tensor:
    """The embedding of a word, at the start of a text and inside it; 0 for no word."""
    if word is None:
        return torch.zeros_like(table[0])
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (word, f" {word}")]
    return torch.stack([table[i].mean(0) for i in ids]).mean(0)


def apart(words: Tensor) -> Tensor:
    """The nearest orthonormal directions to ``words`` [N, width] (Loewdin), rows of 0 left as they are.

    "left" and "right" are used alike and nearly parallel; what tells them apart has to be sayable.
    """
    some = words.norm(dim=1) > 0
    u, _, vt = torch.linalg.svd(F.normalize(words[some], dim=1), full_matrices=False)
    out = torch.zeros_like(words)
    out[some] = u @ vt
    return out


def truth(scene: Scene) -> Tensor:
    """What each patch has to say: [16, 8] class indices in the order of NAMES, -1 where it has no say."""
    rows = torch.full((SIDE_PATCHES**2, len(NAMES)), -1)
    rows[:, 0] = 0
    rows[:, -1] = GROUNDS.index(scene.ground)
    for thing in scene.things:
        rows[AT[thing.row] * SIDE_PATCHES + AT[thing.column]] = torch.tensor([
            1 + SHAPES.index(thing.shape), tuple(COLOURS).index(thing.colour), tuple(SIZES).index(thing.size),
            PATTERNS.index(thing.pattern), int(thing.outlined), thing.column, thing.row, -1])  # fmt: skip
    return rows


def loss_and_accuracy(eyes: Eyes, images: Tensor, scenes: list[Scene]) -> tuple[Tensor, dict[str, float]]:
    """Summed cross-entropies, and the share of right answers for each of NAMES."""
    rows = torch.stack([truth(s) for s in scenes]).to(images.device)
    total, right = torch.zeros((), device=images.device), {}
    parts = eyes(images).split([len(names) for names in NAMES.values()], -1)
    for k, (name, logits) in enumerate(zip(NAMES, parts, strict=True)):
        total = total + F.cross_entropy(logits.flatten(0, 1), rows[..., k].flatten(), ignore_index=-1)
        asked = rows[..., k] >= 0
        right[name] = (logits.argmax(-1) == rows[..., k])[asked].float().mean().item()
    return total, right


def train(
    network: Any, tokenizer: Any, folder: Path, pool: Pool, *, steps: int, seed: int, device: str = "cpu"
) -> None:
    """Trains the eyes of ``network`` in place, half on sharp images, half on estimates; resumes from
    ``folder``. The vision tower stays as it is from then on: mini-judge (judge.py) sees with it too.
    """
    torch.manual_seed(seed)
    eyes = Eyes(network, tokenizer).to(device).train()
    images, when, scenes = pool
    held = len(scenes) - HELD_OUT

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"{seed}/eyes/{step}")
        sharp = [random_scene(rng) for _ in range(HALF)]
        rows = [rng.randrange(held) for _ in range(HALF)]
        shown = torch.cat([pixels(sharp), images[rows].float() / 127.5 - 1]).to(device)
        return loss_and_accuracy(eyes, shown, sharp + [scenes[i] for i in rows])[0]

    def check(step: int) -> dict[str, float]:
        rng = random.Random(f"{seed}/eyes/check")
        sharp = [random_scene(rng) for _ in range(128)]
        found = loss_and_accuracy(eyes, pixels(sharp).to(device), sharp)[1]
        line = {f"sharp {k}": v for k, v in found.items()}
        late = [i for i in range(held, len(scenes)) if when[i] >= 0.25]
        shown = (images[late].float() / 127.5 - 1).to(device)
        found = loss_and_accuracy(eyes, shown, [scenes[i] for i in late])[1]
        return {k: round(v, 3) for k, v in (line | {f"estimate {k}": v for k, v in found.items()}).items()}

    fit(
        eyes,
        loss_at,
        steps=steps,
        seed=seed,
        lr=1e-3,
        folder=folder,
        average=0.998,
        check=check,
        check_every=500,
    )
    eyes.eval()
    eyes.vision.requires_grad_(False)

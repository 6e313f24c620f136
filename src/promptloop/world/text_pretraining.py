"""The backbones' text encoders, taught which words belong together before any image is drawn.

A real backbone starts from a pretrained CLIP or T5. Trained from nothing by the denoising loss alone, ours
took most of the schedule to learn that "red" belongs to "circle" (docs/log.md); a minute on captions alone
gives it. At the last token of each named group the encoder is asked for the group's attributes, and over the
whole text for the relation and the ground. The heads are thrown away.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptloop.world.captions import Ask, caption_pieces, describe
from promptloop.world.fit import fit
from promptloop.world.scene import COLOURS, GROUNDS, PATTERNS, SHAPES, SIZES, random_scene
from promptloop.world.spelling import WINDOW
from promptloop.world.words import RELATIONS

BATCH = 64
GROUP: dict[str, tuple] = {  # what is asked at the last token of a group; None: not said
    "shape": (None, *SHAPES),
    "colour": (None, *COLOURS),
    "size": (None, *SIZES),
    "pattern": (None, *PATTERNS),
    "outlined": (None, True),
    "count": (1, 2, 3, 4),
    "place": (None, *((c, r) for r in range(3) for c in range(3))),
}
RELATED = (None, *RELATIONS)
ORDER = (0, 1, 2, 3)  # which of the groups this is


@final
class Hearing(nn.Module):
    """A text encoder with a head for groups and a head for the whole text.

    ``layer`` is the hidden state that the backbone reads: -1 the last (normalised), -2 the one before.
    """

    def __init__(self, encoder: Any, words: Any, layer: int) -> None:
        super().__init__()
        self.encoder, self.words, self.layer = encoder, words, layer
        width = encoder.config.hidden_size
        self.group = nn.Linear(width, sum(map(len, GROUP.values())) + len(RELATED) + len(ORDER))
        self.whole = nn.Linear(width, len(RELATED) + len(GROUNDS) + 1)

    def forward(self, texts: list[str]) -> tuple[Tensor, Tensor, list]:
        """Logits [B, WINDOW, .] at every token and [B, .] of the text, and each token's characters."""
        spelled = self.words(texts, padding="max_length", max_length=WINDOW, truncation=True,
                             return_tensors="pt", return_offsets_mapping=True)  # fmt: skip
        ids = spelled.input_ids.to(self.group.weight.device)
        out = self.encoder(ids, output_hidden_states=True)
        states = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        pooled = getattr(out, "text_embeds", None)
        if pooled is None:
            pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            pooled = states.mean(1)
        return self.group(states), self.whole(pooled), spelled.offset_mapping.tolist()


def spoken(seed: int, step: int | str) -> list[tuple[Ask, list[tuple[str, int | None]]]]:
    rng = random.Random(f"{seed}/hearing/{step}")
    asks = [describe(random_scene(rng), rng) for _ in range(BATCH)]
    return [(a, caption_pieces(a, rng)) for a in asks]


def last_tokens(said: list[tuple[str, int | None]], offsets: list) -> list[tuple[int, int]]:
    """(token, group) for each group that the window holds to its end."""
    out, end = [], 0
    for text, group in said:
        end += len(text)
        if group is not None:
            token = next((k for k, (first, last) in enumerate(offsets) if first < last == end), None)
            out += [(token, group)] if token is not None else []
    return out


def loss_and_accuracy(hearing: Hearing, batch: list) -> tuple[Tensor, float]:
    """Mean cross-entropy over everything asked, and the share of groups of which every answer is right."""
    texts = ["".join(t for t, _ in said) for _, said in batch]
    tokens, whole, offsets = hearing(texts)
    found = [(row, k, g) for row, (_, said) in enumerate(batch) for k, g in last_tokens(said, offsets[row])]
    at = tokens[[row for row, _, _ in found], [k for _, k, _ in found]]
    rows = []
    for row, _, g in found:
        ask = batch[row][0]
        known = [values.index(getattr(ask.groups[g], name)) for name, values in GROUP.items()]
        rows.append([*known, RELATED.index(ask.relation if g == 1 else None), g])
    wanted = torch.tensor(rows, device=at.device)
    parts = at.split([*map(len, GROUP.values()), len(RELATED), len(ORDER)], -1)
    losses = [F.cross_entropy(logits, wanted[:, k]) for k, logits in enumerate(parts)]
    right = torch.stack([p.argmax(-1) == wanted[:, k] for k, p in enumerate(parts)]).all(0)
    grounds = (None, *GROUNDS)
    about = torch.tensor([[RELATED.index(a.relation), grounds.index(a.ground)] for a, _ in batch]).to(
        at.device
    )
    for k, logits in enumerate(whole.split([len(RELATED), len(grounds)], -1)):
        losses.append(F.cross_entropy(logits, about[:, k]))
    return torch.stack(losses).mean(), right.float().mean().item()


def train(encoder: Any, words: Any, folder: Path, *, layer: int, steps: int, seed: int) -> None:
    """Trains ``encoder`` in place; resumes from ``folder``."""
    torch.manual_seed(seed)
    hearing = Hearing(encoder, words, layer).to(next(encoder.parameters()).device).train()

    def check(step: int) -> dict[str, float]:
        found = [loss_and_accuracy(hearing, spoken(seed, f"check/{i}")) for i in range(4)]
        return {"held_out_loss": round(sum(f[0].item() for f in found) / 4, 4),
                "groups_right": round(sum(f[1] for f in found) / 4, 4)}  # fmt: skip

    fit(hearing, lambda step: loss_and_accuracy(hearing, spoken(seed, step))[0], steps=steps, seed=seed,
        lr=1.5e-3, folder=folder, average=0.995, check=check, check_every=200)  # fmt: skip

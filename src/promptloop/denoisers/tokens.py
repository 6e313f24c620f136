"""Prompts whose words weigh more or less: which places of an embedding belong to which word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from promptloop.denoisers.cond import Cond


def weighed(denoiser: Any, texts: Sequence[str], weights: Sequence[Sequence[float]]) -> Cond:
    """The prompts embedded, every token of a "text" field times the weight of its last character.

    weights: one for each character of each text. Start, end and padding weigh 1; pooled fields are as they
    are. Where all weights of a text are 1, its row is bitwise that of `embed`. ValueError for a denoiser
    whose embedding has no places for words.
    """
    cond = denoiser.embed(list(texts))
    if all(one == 1 for row in weights for one in row):
        return cond
    denoiser.readers()  # says why, where words have no places
    found: Tensor = cond.fields["text"]
    rows = torch.stack([_row(denoiser, *pair) for pair in zip(texts, weights, strict=True)])
    if rows.shape != found.shape[:2]:
        raise ValueError(f"the embedding has {found.shape[1]} places and the tokens {rows.shape[1]}; words "
                         "cannot be weighed")  # fmt: skip
    scaled = found * rows.to(found)[:, :, None]
    return Cond({**cond.fields, "text": scaled})


def _row(denoiser: Any, text: str, weights: Sequence[float]) -> Tensor:
    """[length] the weight of every place of the embedded text."""
    row: list[float] = []
    told = denoiser.as_read(text)
    if len(told) != len(text):
        raise ValueError(f"{text!r} is cleaned to {told!r} before it is read, so its words cannot be "
                         "weighed; write it so")  # fmt: skip
    for tokenizer, length in denoiser.readers():
        if tokenizer is None:
            row += [1.0] * length
            continue
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} does not tell where its tokens stand in the text, "
                             "so words cannot be weighed; load it with a fast tokenizer")  # fmt: skip
        read = tokenizer(told, padding="max_length", truncation=True, max_length=length, verbose=False,
                         return_offsets_mapping=True)  # fmt: skip
        row += [weights[end - 1] if end > start else 1.0 for start, end in read["offset_mapping"]]
    return torch.tensor(row)

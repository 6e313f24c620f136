"""Batched decoding with one seed per row, log-probabilities recorded, and shared prompts computed once.

Everything here speaks of chat inputs as transformers makes them: left-padded ids, a mask, positions (2-D, or
with the three axes of an mrope model in front) and whatever else the family's forward wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Inputs:
    """A batch of prompts: ids and mask [B, L] (left-padded), positions [..., B, L], the family's extras."""

    ids: Tensor
    mask: Tensor
    positions: Tensor
    extras: dict[str, Tensor]  # pixels, grids; token types are [B, L] like the ids

    def followed_by(self, tokens: Tensor) -> Inputs:
        """The same prompts with completions [B, T] appended; the caller masks the padding on their right."""
        batch, length = tokens.shape
        steps = torch.arange(1, length + 1, device=tokens.device)
        extras = {
            name: torch.cat([x, x.new_zeros(batch, length)], 1) if name.endswith("token_type_ids") else x
            for name, x in self.extras.items()
        }
        return Inputs(
            torch.cat([self.ids, tokens], 1),
            torch.cat([self.mask, self.mask.new_ones(batch, length)], 1),
            torch.cat([self.positions, self.positions[..., -1:] + steps], -1),
            extras,
        )

    def after(self, prefix: int) -> Tensor:
        """The mask [B, prefix + L] of these prompts behind a prefix that all of them share."""
        return torch.cat([self.mask.new_ones(len(self.mask), prefix), self.mask], 1)


@dataclass(frozen=True)
class Sampling:
    """What drafts are drawn from: which tokens end one, which are never drawn, and whether the prompt's first
    token is not in the template but the tokenizer's.
    """

    temperature: float
    longest: int
    ends: tuple[int, ...]
    never: tuple[int, ...]
    adds_first: bool


@dataclass(frozen=True)
class Prefilled:
    """Prompts that have been read: logits [B, V] of the next token, and what decoding goes on from."""

    logits: Tensor
    cache: Cache
    mask: Tensor  # [B, cached length]
    last: Tensor  # [..., B, 1] position of the last token

    def take(self, index: Sequence[int]) -> Prefilled:
        """Rows by index, repeats allowed; the cache is changed in place."""
        if list(index) == list(range(len(self.logits))):
            return self
        rows = torch.tensor(index, device=self.logits.device)
        self.cache.batch_select_indices(rows)
        return replace(
            self, logits=self.logits[rows], mask=self.mask[rows], last=self.last.index_select(-2, rows)
        )


def _prepared(network: Any, input_ids: Tensor, **kwargs: Any) -> Any:
    names = ("logits_processor", "stopping_criteria", "generation_config")
    return {name: value for name, value in kwargs.items() if name not in names}


def positions(network: Any, encoded: dict[str, Tensor]) -> Tensor:
    """Position ids [..., B, L] of left-padded prompts, as the family's own `generate` prepares them.

    Families differ (an mrope model places an image on three axes), so `generate` is asked, stopped before it
    decodes; pixels stay out so that the vision tower does not run. What is not said here comes from the model
    folder's generation_config: the number of rows must not.
    """
    text = {name: x for name, x in encoded.items() if "pixel" not in name}
    pad = GenerationConfig(max_new_tokens=1, pad_token_id=0, num_beams=1, num_return_sequences=1)
    return network.generate(**text, generation_config=pad, custom_generate=_prepared)["position_ids"]


def shared_length(inputs: Inputs, image_token: int | None) -> int:
    """Number of leading tokens that all prompts share, images excluded, at least one token left over each."""
    lengths = inputs.mask.sum(1).tolist()
    rows = [row[-length:].tolist() for row, length in zip(inputs.ids, lengths, strict=True)]
    shared = 0
    for column in zip(*(row[:-1] for row in rows), strict=False):
        if len(set(column)) > 1 or column[0] == image_token:
            break
        shared += 1
    return shared


def _without_prefix(inputs: Inputs, prefix: int) -> Inputs:
    """The prompts without their first `prefix` tokens, left-padded anew."""
    length = int(inputs.mask.sum(1).max()) - prefix
    keep = inputs.mask.cumsum(1) > prefix  # the tokens after the prefix
    mask = (keep & inputs.mask.bool()).to(inputs.mask.dtype)[:, -length:]
    extras = {
        name: x[:, -length:] if name.endswith("token_type_ids") else x for name, x in inputs.extras.items()
    }
    return Inputs(inputs.ids[:, -length:], mask, inputs.positions[..., -length:], extras)


def _prefix(network: Any, inputs: Inputs, length: int) -> Cache:
    """Keys and values of the first `length` tokens, computed on one row and repeated for all."""
    start = int((inputs.mask[0] == 0).sum())
    cut = slice(start, start + length)
    extras = {name: x[:1, cut] for name, x in inputs.extras.items() if name.endswith("token_type_ids")}
    cache = network(
        input_ids=inputs.ids[:1, cut],
        attention_mask=inputs.mask[:1, cut],
        position_ids=inputs.positions[..., :1, cut],
        use_cache=True,
        logits_to_keep=1,
        **extras,
    ).past_key_values
    cache.batch_repeat_interleave(len(inputs.ids))
    return cache


def shared(network: Any, inputs: Inputs, *, image_token: int | None) -> tuple[int, Cache | None, Inputs]:
    """(length, cache, rest): what all prompts begin with (the instruction), read once, and what remains.

    The prefix is shared only where every layer of the cache is a plain one: in a sliding-window or recurrent
    layer the padding between prefix and rest would count. Gradients flow through the cache.
    """
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=network.config).layers)
    prefix = shared_length(inputs, image_token) if plain and image_token is not None else 0
    if not prefix or len(inputs.ids) < 2:
        return 0, None, inputs
    return prefix, _prefix(network, inputs, prefix), _without_prefix(inputs, prefix)


def prefill(network: Any, inputs: Inputs, *, image_token: int | None, reuse: bool = True) -> Prefilled:
    """Read the prompts. With `reuse`, what all of them begin with is read once."""
    prefix, cache, rest = shared(network, inputs, image_token=image_token) if reuse else (0, None, inputs)
    mask = rest.after(prefix)
    out = network(
        input_ids=rest.ids,
        attention_mask=mask,
        position_ids=rest.positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **rest.extras,
    )
    return Prefilled(out.logits[:, -1], out.past_key_values, mask, rest.positions[..., -1:])


def draw(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row [B] by inverting the distribution function at `uniforms` [B] in [0, 1).

    A token of probability 0 is never drawn: the first entry whose cumulated mass exceeds u has mass. Where u
    is nan it is the likeliest token.
    """
    wide = torch.float32 if log_probs.device.type == "mps" else torch.float64
    mass = log_probs.to(wide).exp().cumsum(-1)
    points = uniforms.nan_to_num().to(wide)[:, None] * mass[:, -1:]
    drawn = torch.searchsorted(mass, points, right=True)[:, 0]
    return torch.where(uniforms.isnan(), log_probs.argmax(-1), drawn)


def decode(
    network: Any,
    read: Prefilled,
    *,
    log_softmax: Callable[[Tensor, int], Tensor],
    uniforms: Tensor | None,
    stop: Tensor,
    limit: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens and log-probs of each row, up to and including its stop token, at most `limit` of them.

    `log_softmax` takes the logits [B, V] and the place of the token. `uniforms` [B, limit] are the rows' own
    random numbers; None decodes greedily.
    """
    tokens: list[Tensor] = []
    scores: list[Tensor] = []
    mask, last, logits = read.mask, read.last, read.logits
    ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    lengths = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    while True:
        log_probs = log_softmax(logits, len(tokens))
        token = log_probs.argmax(-1) if uniforms is None else draw(log_probs, uniforms[:, len(tokens)])
        tokens.append(token)
        scores.append(log_probs.gather(1, token[:, None])[:, 0])
        lengths += (~ended).long()
        ended |= torch.isin(token, stop)
        if len(tokens) == limit or bool(ended.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        last = last + 1
        logits = network(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=last,
            past_key_values=read.cache,
            use_cache=True,
        ).logits[:, -1]
    ids, values = torch.stack(tokens, 1).cpu(), torch.stack(scores, 1).cpu()
    ends = lengths.tolist()
    return [row[:n] for row, n in zip(ids, ends, strict=True)], [
        row[:n] for row, n in zip(values, ends, strict=True)
    ]

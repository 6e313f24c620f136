"""A vision-language chat model as the policy: any image-text-to-text model of transformers, with LoRA or not.

How the message is worded and how an answer is read is in `message.py`; how tokens are drawn in `decoding.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText

from promptloop.complete import complete
from promptloop.json_file import readable
from promptloop.names import HUB_ID
from promptloop.policies import saved
from promptloop.policies.contract import LIKELIEST, Draft, Policy, Request
from promptloop.policies.decoding import Inputs, Sampling, decode, positions, prefill, shared
from promptloop.policies.message import messages, read
from promptloop.policies.pictures import by_picture, identity, picture
from promptloop.policies.processor import load_processor
from promptloop.policies.quantize import Quantize
from promptloop.precision import dtype_named


@final
@dataclass(frozen=True, eq=False)
class Mllm(Policy):
    """Writes prompts with `network`, a chat model that sees images.

    Drafts are drawn from softmax(logits / temperature) over all tokens but the special ones (an end token is
    allowed); no top-k, no top-p. `log_probs` are of that distribution, at generation and in `log_prob` alike.
    `temperature=0` takes the likeliest token, with log-probs at temperature 1. An answer that has not ended
    after `max_new_tokens` is refused as overlong. `reuse` reads shared parts of the prompts once. With
    `fixed_length` every draft has `max_new_tokens` tokens, the last an end token: for comparable timings.
    `quantize` says how the weights are kept, for `save`.
    """

    network: Any
    processor: Any
    temperature: float = 1.0
    max_new_tokens: int = 48
    image_size: int | None = None
    reuse: bool = True
    fixed_length: bool = False
    quantize: Quantize = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; give 0 (greedy) or a positive number")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; give pixels, from 1")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; a draft needs at least 1 token")
        if not self.processor.tokenizer.chat_template and not self.processor.chat_template:
            raise ValueError("the policy has no chat template; use a chat (instruction-tuned) checkpoint")

    @staticmethod
    def load(
        path_or_id: str | Path,
        *,
        lora: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        temperature: float = 1.0,
        max_new_tokens: int | None = None,
        image_size: int | None = None,
        quantize: Quantize | None = None,
    ) -> Mllm:
        """From a folder or a hub id. Only safetensors are read.

        `lora` is a PEFT folder, whose weights alone stay trainable. `max_new_tokens` None: what the LoRA was
        trained with, else what the model's generation_config says, else 48. `image_size` None: what it was
        trained with, else the estimates as they are decoded. `quantize` "4bit" keeps the weights in four bits
        (`quantize.py`), beside which a LoRA is trained; None: as the LoRA was trained, else whole.
        ValueError where there is no such folder and the name can be no hub id.
        """
        if not Path(path_or_id).is_dir() and not HUB_ID.fullmatch(str(path_or_id)):
            raise ValueError(f"{path_or_id} does not exist; give a folder or a hub id (owner/name)")
        dtype = dtype_named(dtype)
        readable(path_or_id, *([lora] if lora else []))
        said = None if lora is None else saved.of_lora(lora)
        kept, how = saved.as_trained(quantize, said, dtype, device)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            str(path_or_id), dtype=dtype, use_safetensors=True, output_loading_info=True, **how
        )
        network, report = loaded
        complete(path_or_id, report)
        network.requires_grad_(kept == "none")
        says = said or network.generation_config
        limit = says.max_new_tokens or network.generation_config.max_new_tokens
        if lora is not None:
            from peft import PeftModel

            network = PeftModel.from_pretrained(network, str(lora), is_trainable=True)
            saved.whole(network, lora)
        processor = load_processor(str(path_or_id))
        limit = max_new_tokens if max_new_tokens is not None else limit or 48
        image_size = says.to_dict().get(saved.IMAGE_SIZE) if image_size is None else image_size
        network = network if kept == "4bit" else network.to(device)  # it is there already
        return Mllm(network.eval(), processor, temperature, limit, image_size, quantize=kept)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Its weights (or these in their place) as safetensors, a LoRA alone, or all with the processor, and
        how long its drafts may be and how large its pictures.
        """
        whole = not hasattr(self.network, "peft_config")
        # else peft asks the hub for the base's config
        how = {} if whole else {"save_embedding_layers": False}
        self.network.save_pretrained(folder, state_dict=None if weights is None else dict(weights), **how)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty template; the run has a card
        says = self.network.generation_config
        saved.write(folder, says, self.max_new_tokens, self.image_size, self.quantize)
        if whole:
            self.processor.save_pretrained(folder)
        else:
            saved.in_order(folder)

    @torch.no_grad()
    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        """One draft per request; draft i depends on request i and seeds[i], whatever else is asked."""
        if len(seeds) != len(requests):
            raise ValueError(f"{len(requests)} requests but {len(seeds)} seeds; give one seed per request")
        rows = range(len(requests))
        keys = [(identity(requests[i]), int(seeds[i])) if self.reuse else (i,) for i in rows]
        first = dict(zip(reversed(keys), reversed(rows), strict=True))  # equal ones are drawn once
        drawn = sorted(first.values())
        drafts: dict[int, Draft] = {}
        for places in by_picture([requests[i] for i in drawn]):
            chosen = [drawn[k] for k in places]
            made = self._write([requests[i] for i in chosen], [seeds[i] for i in chosen])
            drafts |= dict(zip(chosen, made, strict=True))
        return [drafts[first[key]] for key in keys]

    def _write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        keys = [identity(request) if self.reuse else (i,) for i, request in enumerate(requests)]
        distinct = dict(zip(reversed(keys), reversed(requests), strict=True))
        place = {key: k for k, key in enumerate(distinct)}
        inputs = self.encode(list(distinct.values()))
        begun = prefill(self.network, inputs, image_token=self._image_token, reuse=self.reuse)
        begun = begun.take([place[key] for key in keys])
        forbidden = self._forbidden(begun.logits)
        tokens, log_probs = decode(
            self.network,
            begun,
            log_softmax=lambda logits, k: self._log_softmax(logits, forbidden[min(k, len(forbidden) - 1)]),
            uniforms=self._uniforms(seeds).to(self._device) if self.temperature else None,
            stop=torch.tensor(sorted(self._ends), device=self._device),
            limit=self.max_new_tokens,
        )
        return [self.draft(*row) for row in zip(requests, tokens, log_probs, strict=True)]

    def silence(self, request: Request) -> Draft:
        """The draft that ends before it has begun."""
        return Draft(request, request.prompt, torch.tensor([self._pad]), torch.zeros(1))

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        """See `Policy.log_prob`. Differentiable; put the network in the mode (train, eval) you want."""
        width = max((len(draft.tokens) for draft in drafts), default=0)
        parts, order = [], []
        for rows in by_picture([draft.request for draft in drafts]):
            parts.append(self._log_prob([drafts[i] for i in rows], width))
            order += rows
        lengths = torch.tensor([len(draft.tokens) for draft in drafts], device=self._device)
        mask = torch.arange(width, device=self._device) < lengths[:, None]
        back = torch.tensor(order, device=self._device).argsort()
        return torch.cat(parts)[back].masked_fill(~mask, 0.0), mask

    def _log_prob(self, drafts: Sequence[Draft], width: int) -> Tensor:
        inputs = self.encode([draft.request for draft in drafts])
        prefix, cache = 0, None
        if self.reuse and not getattr(self.network, "is_gradient_checkpointing", False):
            prefix, cache, inputs = shared(self.network, inputs, image_token=self._image_token)
        tokens = pad_sequence([draft.tokens for draft in drafts], batch_first=True, padding_value=self._pad)
        tokens = torch.nn.functional.pad(tokens, (0, width - tokens.shape[1]), value=self._pad)
        tokens = tokens.to(self._device)
        whole = inputs.followed_by(tokens)
        lengths = torch.tensor([len(draft.tokens) for draft in drafts], device=self._device)
        whole.mask[:, -width:] = (torch.arange(width, device=self._device) < lengths[:, None]).to(whole.mask)
        logits = self.network(
            input_ids=whole.ids,
            attention_mask=whole.after(prefix),
            position_ids=whole.positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=width + 1,
            **whole.extras,
        ).logits[:, -width - 1 : -1]
        return self._log_softmax(logits, self._forbidden(logits)[:width]).gather(2, tokens[..., None])[..., 0]

    # --- from requests to tensors and back

    def encode(self, requests: Sequence[Request]) -> Inputs:
        """What the network reads for these requests, all of them with an estimate or all without."""
        texts = [
            self.processor.apply_chat_template(messages(self.plain(request)), add_generation_prompt=True)
            for request in requests
        ]
        pictures = None if requests[0].estimate is None else [[picture(request)] for request in requests]
        encoded = self.processor(
            text=texts,
            images=pictures,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=self.adds_first(texts[0]),
        )
        tensors = {name: x.to(self._device) for name, x in encoded.items() if isinstance(x, Tensor)}
        dtype = self.network.dtype
        tensors = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
        places = positions(self.network, tensors)
        return Inputs(tensors.pop("input_ids"), tensors.pop("attention_mask"), places, tensors)

    def adds_first(self, text: str) -> bool:
        """Whether the tokenizer may add its first token: the template has not put one there already."""
        begin = self.processor.tokenizer.bos_token
        return begin is None or not text.startswith(begin)

    @functools.cached_property
    def sampling(self) -> Sampling:
        """The distribution of its drafts, said to somebody else who draws them."""
        rows = self.network.get_output_embeddings().weight.shape[0]
        special = {i for i in self._control if i not in self._ends and i < rows}
        never = sorted(special | set(range(len(self.processor.tokenizer), rows)))
        first = self.adds_first(self.processor.apply_chat_template(messages(Request("", ""))))
        return Sampling(self.temperature, self.max_new_tokens, tuple(sorted(self._ends)), tuple(never), first)

    def plain(self, request: Request) -> Request:
        """The request without the spelled-out special tokens a user or a draft may contain."""
        texts = []
        for text in (request.query, request.prompt):
            while found := [token for token in self._control_texts if token in text]:
                text = text.replace(found[0], " ")
            texts.append(text)
        return replace(request, query=texts[0], prompt=texts[1])

    def draft(self, request: Request, tokens: Tensor, log_probs: Tensor) -> Draft:
        ended = int(tokens[-1]) in self._ends
        answer = self.processor.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        text, kept = read(request, answer, ended=ended)
        return Draft(request, text, tokens.clone(), log_probs.clone(), answer, kept)

    # --- the distribution

    def _log_softmax(self, logits: Tensor, forbidden: Tensor) -> Tensor:
        """Log-probabilities [..., V] a draft is drawn from, in float32."""
        logits = logits.float() / (self.temperature or 1.0)
        return logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)

    def _forbidden(self, logits: Tensor) -> Tensor:
        """Bool [1, V]: special tokens that do not end an answer, and rows of the head that no token has; with
        `fixed_length` [max_new_tokens, V]: also an end anywhere but last, and last anything else.
        """
        rows = logits.shape[-1]
        forbidden = (torch.arange(rows) >= len(self.processor.tokenizer))[None]
        forbidden[:, [i for i in self._control if i not in self._ends and i < rows]] = True
        if self.fixed_length:
            ends = torch.isin(torch.arange(rows), torch.tensor(sorted(self._ends)))
            forbidden = torch.cat([(forbidden | ends).expand(self.max_new_tokens - 1, rows), ~ends[None]])
        return forbidden.to(logits.device)

    def _uniforms(self, seeds: Sequence[int]) -> Tensor:
        size, nan = self.max_new_tokens, torch.full((self.max_new_tokens,), torch.nan)
        drawn = {int(s): torch.Generator().manual_seed(int(s)) for s in seeds if s != LIKELIEST}
        rows = {seed: torch.rand(size, generator=rng) for seed, rng in drawn.items()} | {LIKELIEST: nan}
        return torch.stack([rows[int(seed)] for seed in seeds])

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        configured = self.network.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in [*ends, self.processor.tokenizer.eos_token_id] if i is not None)

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        words = self.processor.tokenizer
        added = [i for i, token in words.added_tokens_decoder.items() if token.special]
        return frozenset([*words.all_special_ids, *added])

    @functools.cached_property
    def _control_texts(self) -> tuple[str, ...]:
        return tuple(self.processor.tokenizer.convert_ids_to_tokens(sorted(self._control)))

    @property
    def _pad(self) -> int:
        return min(self._ends)  # masked wherever it stands; an end token is always in the vocabulary

    @property
    def _image_token(self) -> int | None:
        return getattr(self.processor, "image_token_id", None)

    @property
    def _device(self) -> torch.device:
        return self.network.device

"""A chat model that sees, in this process: one question about each image.

The same behind a server is `served_chat.py`; the judges ask either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, final

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

from promptloop.names import first_line
from promptloop.policies.processor import load_processor
from promptloop.rewards.rows import bitmaps, failed


class Answers(Protocol):
    """Whoever answers questions about images in words."""

    def answers(
        self, reward: str, images: Tensor, queries: Sequence[str], question: str, tokens: int
    ) -> list[str]:
        """The likeliest whole answer to `question`, with {query} filled in, about each image. ValueError or
        ConnectionError naming `reward`, the image and its query where there is none within `tokens` tokens.
        """
        ...


@final
class Chat:
    """A network and its processor. Images are made at most `size` wide and high; `batch` go together."""

    def __init__(self, network: Any, processor: Any, *, size: int = 448, batch: int = 16) -> None:
        self.network, self.processor, self.size, self.batch = network, processor, size, batch

    @staticmethod
    def load(where: str | None, reward: str, *, device: str | torch.device = "cpu") -> Chat:
        """The chat model in a folder or of a hub id, frozen; in bfloat16 on CUDA."""
        if where is None:
            raise ValueError(
                f"reward {reward} needs a chat model: give {reward}:FOLDER_OR_ID, or a server's "
                f"{reward}:http://HOST:PORT/v1#MODEL"
            )
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        try:
            network = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype, use_safetensors=True)
            processor = load_processor(where)
        except (OSError, ValueError, KeyError) as error:
            why = first_line(error)
            raise ValueError(f"{reward} {where} cannot be loaded as a chat model that sees: {why}") from error
        return Chat(network.requires_grad_(False).eval().to(device), processor)

    def ids(self, answer: str) -> list[int]:
        """The tokens of an answer, or of its beginning."""
        return list(self.processor.tokenizer(answer, add_special_tokens=False).input_ids)

    @torch.no_grad()
    def next_logits(self, images: Tensor, questions: Sequence[str], begun: Sequence[int] = ()) -> Tensor:
        """Logits [B, V], float32, of the token that follows the `begun` ones of the answer."""
        if len(images) != len(questions):
            raise ValueError(f"{len(questions)} queries for {len(images)} images; give one each")
        found = []
        for part in self._parts(len(images)):
            inputs = self._inputs(images[part], questions[part])
            if begun:
                follow(inputs, begun)
            found.append(self.network(**inputs, logits_to_keep=1).logits[:, -1].float())
        return torch.cat(found)

    @torch.no_grad()
    def answers(
        self, reward: str, images: Tensor, queries: Sequence[str], question: str, tokens: int
    ) -> list[str]:
        """`Answers.answers`: greedy, so that the same image gets the same answer."""
        words = self.processor.tokenizer
        found: list[str] = []
        said = self.network.generation_config.eos_token_id
        ends = {*(said if isinstance(said, list) else [said]), words.eos_token_id} - {None}
        greedy = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=words.eos_token_id if words.pad_token_id is None else words.pad_token_id,
        )
        questions = [question.format(query=query) for query in queries]
        for part in self._parts(len(images)):
            inputs = self._inputs(images[part], questions[part])
            made = self.network.generate(**inputs, generation_config=greedy)[
                :, inputs["input_ids"].shape[1] :
            ]
            for row in made.tolist():
                end = next((place for place, token in enumerate(row) if token in ends), None)
                text = words.decode(row[:end], skip_special_tokens=True).strip()
                if end is None:
                    k, why = len(found), ValueError(f"its answer has no end within {tokens} tokens: {text!r}")
                    raise failed(reward, k, queries[k], why)
                found.append(text)
        return found

    def _parts(self, count: int) -> list[slice]:
        return [slice(k, k + self.batch) for k in range(0, count, self.batch)]

    def _inputs(self, images: Tensor, questions: Sequence[str]) -> Any:
        begin = self.processor.tokenizer.bos_token
        texts = [self.processor.apply_chat_template(turn(q), add_generation_prompt=True) for q in questions]
        return self.processor(
            text=texts,
            images=[[picture] for picture in pictures(images, self.size)],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=begin is None or not texts[0].startswith(begin),
        ).to(self.network.device, dtype=self.network.dtype)


def follow(inputs: Any, begun: Sequence[int]) -> None:
    """Puts the `begun` tokens of the answer behind every prompt of the batch."""
    for name, value in list(inputs.items()):
        if name == "input_ids":
            more = value.new_tensor(list(begun)).expand(len(value), -1)
        elif name == "attention_mask":
            more = value.new_ones(len(value), len(begun))
        elif name.endswith("token_type_ids"):  # text
            more = value.new_zeros(len(value), len(begun))
        else:
            continue
        inputs[name] = torch.cat([value, more], 1)


def turn(question: str) -> list[dict[str, Any]]:
    """The question about one image, as a chat."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def pictures(images: Tensor, size: int) -> list[Image.Image]:
    """8-bit pictures whose longer side is at most `size`."""
    longest = max(images.shape[-2:])
    if longest > size:
        shape = tuple(max(1, round(side * size / longest)) for side in images.shape[-2:])
        images = F.interpolate(images.float(), shape, mode="bilinear", antialias=True, align_corners=False)
    return bitmaps(images)

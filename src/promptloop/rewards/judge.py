"""A chat model as the judge: how probable it finds it that the image shows what the query says.

As VQAScore (Lin et al., arXiv 2404.01291), with any image-text-to-text model of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from promptloop.names import first_line
from promptloop.policies.processor import load_processor

QUESTION = 'Does this image show "{query}"? Answer yes or no.'
YES, NO = ("Yes", "yes"), ("No", "no")


@final
class Judge:
    """Images [B, 3, H, W] in [0, 1] to P(yes) / (P(yes) + P(no)) [B], of the first token of the answer.

    Images are made at most `size` wide and high, `batch` are judged together.
    """

    def __init__(self, network: Any, processor: Any, *, size: int = 448, batch: int = 16) -> None:
        self.network, self.processor, self.size, self.batch = network, processor, size, batch
        self.yes, self.no = ([self._first(word) for word in words] for words in (YES, NO))
        if set(self.yes) & set(self.no):
            raise ValueError("the judge's tokenizer begins yes and no alike; give another model")

    @staticmethod
    def load(where: str | None = None, *, device: str | torch.device = "cpu") -> Judge:
        """The chat model in a folder or of a hub id; in bfloat16 on CUDA."""
        if where is None:
            raise ValueError("reward judge needs a chat model: give judge:FOLDER_OR_ID")
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        try:
            network = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype, use_safetensors=True)
            processor = load_processor(where)
        except (OSError, ValueError, KeyError) as error:
            why = first_line(error)
            raise ValueError(f"judge {where} cannot be loaded as a chat model that sees: {why}") from error
        network = network.requires_grad_(False).eval().to(device)
        return Judge(network, processor)

    @torch.no_grad()
    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        parts = [slice(k, k + self.batch) for k in range(0, len(images), self.batch)]
        return torch.cat([self._judged(images[part], queries[part]) for part in parts])

    def _first(self, word: str) -> int:
        """The first token of an answer that is `word`."""
        return int(self.processor.tokenizer(word, add_special_tokens=False).input_ids[0])

    def _judged(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        begin = self.processor.tokenizer.bos_token
        texts = [self.processor.apply_chat_template(asked(q), add_generation_prompt=True) for q in queries]
        inputs = self.processor(
            text=texts,
            images=[[picture] for picture in pictures(images, self.size)],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=begin is None or not texts[0].startswith(begin),
        ).to(self.network.device, dtype=self.network.dtype)
        logits = self.network(**inputs, logits_to_keep=1).logits[:, -1].float()
        yes, no = (logits[:, ids].logsumexp(1) for ids in (self.yes, self.no))
        return torch.sigmoid(yes - no)


def asked(query: str) -> list[dict[str, Any]]:
    """The question about one image, as a chat."""
    text = {"type": "text", "text": QUESTION.format(query=query)}
    return [{"role": "user", "content": [{"type": "image"}, text]}]


def pictures(images: Tensor, size: int) -> list[Image.Image]:
    """8-bit pictures whose longer side is at most `size`."""
    longest = max(images.shape[-2:])
    if longest > size:
        shape = tuple(max(1, round(side * size / longest)) for side in images.shape[-2:])
        images = F.interpolate(images.float(), shape, mode="bilinear", antialias=True, align_corners=False)
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]

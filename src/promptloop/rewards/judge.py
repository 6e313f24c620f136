"""A chat model as the judge: how probable it finds it that the image shows what the query says.

As VQAScore (Lin et al., arXiv 2404.01291), with any image-text-to-text model of transformers, or behind any
OpenAI-compatible server that gives log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from promptloop.names import is_server
from promptloop.rewards.chat import Chat, pictures, turn
from promptloop.rewards.contract import Reward

__all__ = ["Judge", "asked", "pictures"]
QUESTION = 'Does this image show "{query}"? Answer yes or no.'
YES, NO = ("Yes", "yes"), ("No", "no")


@final
class Judge:
    """Images [B, 3, H, W] in [0, 1] to P(yes) / (P(yes) + P(no)) [B], of the first token of the answer.

    Images are made at most `size` wide and high, `batch` are judged together.
    """

    def __init__(self, network: Any, processor: Any, *, size: int = 448, batch: int = 16) -> None:
        self.network, self.processor = network, processor
        self.chat = Chat(network, processor, size=size, batch=batch)
        self.yes, self.no = ([self.chat.ids(word)[0] for word in words] for words in (YES, NO))
        if set(self.yes) & set(self.no):
            raise ValueError("the judge's tokenizer begins yes and no alike; give another model")

    @staticmethod
    def load(where: str | None = None, *, device: str | torch.device = "cpu") -> Reward:
        """The chat model in a folder or of a hub id, in bfloat16 on CUDA; or the one at a server,
        "http://HOST:PORT/v1#MODEL".
        """
        if where is not None and is_server(where):
            from promptloop.rewards.served_chat import ServedChat, ServedJudge

            return ServedJudge(ServedChat.named(where))
        chat = Chat.load(where, "judge", device=device)
        return Judge(chat.network, chat.processor)

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        logits = self.chat.next_logits(images, [QUESTION.format(query=query) for query in queries])
        yes, no = (logits[:, ids].logsumexp(1) for ids in (self.yes, self.no))
        return torch.sigmoid(yes - no)


def asked(query: str) -> list[dict[str, Any]]:
    """The question about one image, as a chat."""
    return turn(QUESTION.format(query=query))

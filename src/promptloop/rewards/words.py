"""A reward's tokenizer from its tokenizer.json: texts to ids of one length, whatever stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from tokenizers import Tokenizer
from torch import Tensor

from promptloop.names import first_line

FILE = "tokenizer.json"


@final
class Words:
    """Texts to ids [B, length]: cut with the end kept, filled up with `end`.

    end: the token after the last word, by its text; its id is `self.end`. `rows`: how many ids there are.
    """

    def __init__(self, tokenizer: Tokenizer, *, length: int, end: str) -> None:
        found = tokenizer.token_to_id(end)
        if found is None:
            raise ValueError(f"the tokenizer has no token {end!r}, so it is not this reward's")
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=found, pad_token=end)
        self.tokenizer, self.end, self.rows = tokenizer, found, tokenizer.get_vocab_size()

    @staticmethod
    def load(file: Path, *, length: int, end: str) -> Words:
        """From a tokenizer.json; ValueError where it is none, or another family's."""
        return Words(read(file), length=length, end=end)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([each.ids for each in self.tokenizer.encode_batch(list(texts))])


def read(file: Path) -> Tokenizer:
    """A tokenizer.json, neither cutting nor filling up; ValueError where it is none."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} cannot be read as a tokenizer: {first_line(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

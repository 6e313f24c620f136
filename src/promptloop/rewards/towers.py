"""Rewards that embed the picture and the text apart and compare the two: what all of them share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn

from promptloop.rewards.batches import in_batches
from promptloop.rewards.files import CONFIG, cached, there, weights_in
from promptloop.rewards.weights import fill, tensors_in
from promptloop.rewards.words import FILE, Words

TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")  # its names of the files with weights
COUNTERS = re.compile(r"(?:.+\.)?embeddings\.position_ids")  # 0, 1, 2, ...: older versions saved them too


@final
@dataclass(frozen=True)
class Release:
    """What a reward is released as.

    name: the reward's. hub, files: where its weights are; the first of `files` that is there.
    view: pictures [B, 3, H, W] in [0, 1] and the side wanted to what the network sees.
    activation, head: of the network, and the width of one attention head over the picture; used where no
        config.json lies beside the weights, since tensors do not tell them.
    words: the hub repository of the tokenizer, where none lies beside the weights; its texts end with `end`.
    before: what is put before every query.
    """

    name: str
    hub: str
    files: tuple[str, ...]
    view: Callable[[Tensor, int], Tensor]
    activation: str = "gelu"
    head: int = 64
    words: str = "openai/clip-vit-large-patch14"
    end: str = "<|endoftext|>"
    before: str = ""


class TwoTowers(nn.Module, ABC):
    """Images [B, 3, H, W] in [0, 1] and the user's queries to [B]; `batch` images are read together."""

    differentiable = True
    release: ClassVar[Release]

    def __init__(self, network: Any, words: Words, batch: int = 32) -> None:
        super().__init__()
        self.network, self.words, self.batch = network, words, batch

    @classmethod
    def load(cls, where: str | None = None, *, device: str | torch.device = "cpu") -> Self:
        """The released weights (read without pickle's code), frozen, in float32.

        where: a folder or file, or a hub id, which is downloaded (once); None: what the hub's cache has of
            the release. The tokenizer is tokenizer.json beside the weights, or else in the hub's cache.
        ValueError: nothing is there, or tensors are missing, left over or of another shape.
        """
        from_ = cls.release
        file, path, *_ = cls.read_from(where)
        tensors = {n: value for n, value in tensors_in(file).items() if not COUNTERS.fullmatch(n)}
        try:
            named = cls.named(tensors)
            words = Words.load(path, length=cls.length(named), end=from_.end)
            made = cls(cls.built(named, words, file.parent), words)
        except KeyError as error:
            raise ValueError(f"{file} is no {from_.name} checkpoint: {error.args[0]!r} is missing") from None
        fill(made.network, named, str(file), from_.name)
        return made.requires_grad_(False).eval().to(device)

    @classmethod
    def read_from(cls, where: str | None = None) -> list[Path]:
        """Every file that decides a score: the weights, the tokenizer, and config.json where there is one."""
        from_ = cls.release
        file, asked = weights_in(where, from_.name, from_.hub, *from_.files)
        if asked and where and file.name in TRANSFORMERS:
            cached(where, CONFIG, download=True, why="the network's heads are written there")
        return [file, beside(file, FILE, from_.words, asked), *there(file.parent / CONFIG)]

    @classmethod
    def named(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors by the network's names."""
        return dict(tensors)

    @classmethod
    def length(cls, tensors: Mapping[str, Tensor]) -> int:
        """Tokens of a text, the end included."""
        return len(tensors["text_model.embeddings.position_embedding.weight"])

    @classmethod
    @abstractmethod
    def built(cls, tensors: Mapping[str, Tensor], words: Words, folder: Path) -> nn.Module:
        """The network with the sizes of the tensors, not yet their values; KeyError names what is missing."""

    @abstractmethod
    def scores(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """[B] from pictures as the network sees them and ids [B, length]."""

    @property
    def side(self) -> int:
        """Of the square that the network sees."""
        return int(self.network.config.vision_config.image_size)

    def forward(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        return in_batches(self._scores, images, queries, self.batch)

    def _scores(self, images: Tensor, queries: list[str]) -> Tensor:
        return self.scores(self.pixels(images), self.ids(queries))

    def pixels(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] as the network sees them."""
        return self.release.view(images.to(next(self.network.parameters())), self.side)

    def ids(self, queries: Sequence[str]) -> Tensor:
        """Queries as the network reads them, [B, length]."""
        said = self.words([self.release.before + query for query in queries])
        return said.to(next(self.network.parameters()).device)

    def save(self, folder: str | Path) -> None:
        """Writes what `load` reads: model.safetensors by transformers' names, config.json, tokenizer.json."""
        self.network.save_pretrained(folder)
        self.words.tokenizer.save(str(Path(folder) / FILE))


def beside(file: Path, name: str, hub: str, download: bool) -> Path:
    """The file `name` in the folder of `file`, or else of the hub's repository."""
    if (file.parent / name).is_file():
        return file.parent / name
    return cached(hub, name, download=download, why=f"{file.parent} has no {name}")


def unit(features: Tensor) -> Tensor:
    """Of length 1 along the last axis, in float32 or better."""
    features = features if features.dtype == torch.float64 else features.float()
    return features / features.norm(dim=-1, keepdim=True)

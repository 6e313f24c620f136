"""HPSv3 (Ma et al., arXiv 2508.03789): Qwen2-VL reads picture and text, a head says how people like both.

The text around the query is the release's own and part of what it was trained on. It is not repeated here:
put it into instruction.txt beside the weights (INSTRUCTION and prompt_with_special_token of the release's
hpsv3/dataset/data_collator_qwen.py, one after the other; it holds {text_prompt} and <|Reward|>).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from promptloop.rewards.batches import in_batches
from promptloop.rewards.clip import config_in
from promptloop.rewards.files import CONFIG, weights_in
from promptloop.rewards.pictures import normalised, resized
from promptloop.rewards.towers import beside
from promptloop.rewards.weights import fill, tensors_in
from promptloop.rewards.words import FILE, read

HUB, WEIGHTS, BASE = "MizzenAI/HPSv3", "HPSv3.safetensors", "Qwen/Qwen2-VL-7B-Instruct"
TEXT, QUERY, REWARD, PICTURE = "instruction.txt", "{text_prompt}", "<|Reward|>", "<|image_pad|>"
CHAT = (  # Qwen2-VL's chat template of one user's picture and text
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{picture}<|vision_end|>{text}"
)
RENAMED = (  # names of transformers before 4.52
    (r"visual\.(.+)", r"model.visual.\1"),
    (r"model\.((?:embed_tokens|layers|norm)\..+)", r"model.language_model.\1"),
)
HEAD = (0, 3, 5)  # the head's linear layers; between them ReLU and dropout
RATIO = 200  # longest to shortest side that Qwen2-VL takes


@final
class HPSv3(nn.Module):
    """Images [B, 3, H, W] in [0, 1] and the user's queries to [B], about -5 to 15; differentiable.

    The head gives a mean and a log-deviation of people's liking; the mean is the reward. `tokens`: how many
    the picture is made into, about; `batch` images are read together.
    """

    differentiable = True

    def __init__(self, network: Any, tokenizer: Tokenizer, text: str, batch: int = 4) -> None:
        super().__init__()
        self.network, self.tokenizer, self.text, self.batch, self.tokens = (
            network,
            tokenizer,
            text,
            batch,
            256,
        )

    @staticmethod
    def load(where: str | None = None, *, device: str | torch.device = "cpu") -> HPSv3:
        """The released weights, frozen; in bfloat16 on CUDA, as they are released, the head in float32.

        where: a folder or file, or a hub id, which is downloaded (once); None: what the hub's cache has.
            instruction.txt must lie beside them; config.json and tokenizer.json do, or are Qwen2-VL's from
            the hub's cache.
        ValueError: nothing is there, or tensors are missing, left over or of another shape.
        """
        file, said, words, config = HPSv3.read_from(where)
        text, tokenizer = instruction(said), read(words)
        tokenizer.add_special_tokens([REWARD])
        tensors = {named(n): value for n, value in tensors_in(file).items() if n != "lm_head.weight"}
        try:
            network = Judged(config_in(config.parent, "qwen2_vl"), tensors)
        except KeyError as error:
            raise ValueError(f"{file} is no HPSv3 checkpoint: {error.args[0]!r} is missing") from None
        if tokenizer.token_to_id(PICTURE) != network.model.config.image_token_id:
            raise ValueError(f"the tokenizer beside {file} has another {PICTURE} than its config.json")
        if torch.device(device).type == "cuda":
            network.model.bfloat16()
        fill(network, tensors, str(file), "HPSv3")
        return HPSv3(network, tokenizer, text).requires_grad_(False).eval().to(device)

    @staticmethod
    def read_from(where: str | None = None) -> list[Path]:
        """Every file that decides a score: weights, text, tokenizer, Qwen2-VL's config.json."""
        file, asked = weights_in(where, "hpsv3", HUB, WEIGHTS)
        return [file, file.parent / TEXT, beside(file, FILE, BASE, asked), beside(file, CONFIG, BASE, asked)]

    def forward(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        return in_batches(self._scores, images, queries, self.batch)

    def _scores(self, images: Tensor, queries: list[str]) -> Tensor:
        at, eyes = next(self.network.model.parameters()), self.network.model.config.vision_config
        merge = eyes.spatial_merge_size
        exact = images.dtype if images.dtype == torch.float64 else torch.float32
        pixels = fitted(images.to(at.device, exact), eyes.patch_size * merge, self.tokens)
        rows, columns = (side // eyes.patch_size for side in pixels.shape[-2:])
        grid = torch.tensor([[1, rows, columns]] * len(images), device=at.device)
        seen = self.network.model.visual(
            patches(pixels, eyes.patch_size, merge, eyes.temporal_patch_size).to(at), grid_thw=grid
        )
        ids, last = self.ids(queries, rows * columns // merge**2)
        return self.network(ids.to(at.device), seen.pooler_output, last.to(at.device))

    def ids(self, queries: Sequence[str], places: int) -> tuple[Tensor, Tensor]:
        """[B, T], filled up on the right, and [B] where the reward's token stands, the last of each text."""
        texts = [
            CHAT.format(picture=PICTURE * places, text=self.text.replace(QUERY, query)) for query in queries
        ]
        found = [torch.tensor(each.ids) for each in self.tokenizer.encode_batch(texts)]
        picture, reward = (self.tokenizer.token_to_id(name) or 0 for name in (PICTURE, REWARD))
        for query, row in zip(queries, found, strict=True):
            if int(row.eq(picture).sum()) != places or int(row.eq(reward).sum()) != 1:
                raise ValueError(f"query {query!r} holds {PICTURE} or {REWARD}, which stand for other things")
        return nn.utils.rnn.pad_sequence(found, batch_first=True), torch.tensor(
            [len(row) - 1 for row in found]
        )


@final
class Judged(nn.Module):
    """Qwen2-VL without its words' head, and the release's head."""

    def __init__(self, config: Any, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        if config is None:
            raise ValueError("HPSv3 needs the config.json of its Qwen2-VL")
        config.text_config.vocab_size = len(tensors["model.language_model.embed_tokens.weight"])
        self.model = Qwen2VLModel(config)
        shapes = {k: tensors[f"rm_head.{k}.weight"].shape for k in HEAD}
        made = {k: nn.Linear(shape[1], shape[0]) for k, shape in shapes.items()}
        between = {1: nn.ReLU(), 2: nn.Identity(), 4: nn.ReLU()}
        self.rm_head = nn.Sequential(*((made | between)[k] for k in range(HEAD[-1] + 1)))

    def forward(self, ids: Tensor, seen: Tensor, last: Tensor) -> Tensor:
        """[B] from ids [B, T], what was seen of all pictures [B * places, D], and the reward's places [B].

        Nothing looks ahead, so what fills a text up changes nothing. Positions simply count, as in the
        release, which does not give the picture's tokens Qwen2-VL's rows and columns.
        """
        words = self.model.language_model.embed_tokens(ids)
        mask = (ids == self.model.config.image_token_id)[..., None].expand_as(words)
        read_ = self.model.language_model(inputs_embeds=words.masked_scatter(mask, seen), use_cache=False)
        ends = read_.last_hidden_state[torch.arange(len(ids), device=ids.device), last]
        return self.rm_head(ends.to(self.rm_head[0].weight))[:, 0]


def fitted(images: Tensor, factor: int, tokens: int) -> Tensor:
    """Both sides whole multiples of `factor`, about `tokens` squares of it in all, by Qwen2-VL's rule (in its
    order of operations: floors of exact squares hang on it: 768 gives 420); CLIP's mean and deviation.
    """
    height, width = images.shape[-2:]
    if max(height, width) > RATIO * min(height, width):
        raise ValueError(
            f"a picture of {height} x {width} is longer than {RATIO} to 1, which HPSv3 cannot see"
        )
    area = tokens * factor**2
    shape = tuple(max(factor, round(side / factor) * factor) for side in (height, width))
    if shape[0] * shape[1] > area:
        shrink = math.sqrt(height * width / area)
        shape = tuple(max(1, math.floor(side / shrink / factor)) * factor for side in (height, width))
    elif shape[0] * shape[1] < area:
        grow = math.sqrt(area / (height * width))
        shape = tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return normalised(resized(images, shape))


def patches(pixels: Tensor, size: int, merge: int, twice: int) -> Tensor:
    """[B, 3, H, W] to [B * patches, 3 * twice * size * size]: squares of merge x merge patches one after the
    other, each patch repeated as if it were `twice` frames.
    """
    batch, colours, height, width = pixels.shape
    rows, columns = height // (size * merge), width // (size * merge)
    cut = pixels.reshape(batch, colours, rows, merge, size, columns, merge, size)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
    return cut.expand(-1, -1, -1, -1, -1, -1, twice, -1, -1).reshape(-1, colours * twice * size * size)


def named(name: str) -> str:
    """transformers' present name of a released tensor."""
    for pattern, ours in RENAMED:
        if found := re.fullmatch(pattern, name):
            return found.expand(ours)
    return name


def instruction(file: Path) -> str:
    """The release's text up to the reward's token: nothing after it can change the reward."""
    if not file.is_file():
        raise ValueError(f"hpsv3 needs {file}: INSTRUCTION and prompt_with_special_token of the release")
    text = file.read_text(encoding="utf-8")
    if text.count(QUERY) != 1 or text.count(REWARD) != 1:
        raise ValueError(f"{file} must hold {QUERY} and {REWARD} once each")
    return text[: text.index(REWARD) + len(REWARD)]

"""An ImageReward checkpoint of tiny size with random weights, in the names and files of the released one."""

from pathlib import Path

import torch
from torch import Tensor

WIDTH, PATCH, SIDE, LAYERS, PLACES = 128, 16, 2, 2, 40  # two heads of 64; pictures of 2 x 2 patches
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "red", "circle", "star",
         *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]  # fmt: skip
HEADS = {0: (WIDTH, 32), 2: (32, 16), 4: (16, 8), 6: (8, 4), 7: (4, 1)}  # the MLP's layers, dropout between


def state(seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}

    def draw(name: str, *shape: int, around: float = 0.0) -> None:
        made[name] = around + 0.2 * torch.randn(shape, generator=rng)

    def linear(name: str, inputs: int, outputs: int) -> None:
        draw(f"{name}.weight", outputs, inputs)
        draw(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        draw(f"{name}.weight", WIDTH, around=1.0)
        draw(f"{name}.bias", WIDTH)

    eyes, text = "blip.visual_encoder", "blip.text_encoder"
    draw(f"{eyes}.cls_token", 1, 1, WIDTH)
    draw(f"{eyes}.pos_embed", 1, SIDE**2 + 1, WIDTH)
    draw(f"{eyes}.patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH)
    draw(f"{eyes}.patch_embed.proj.bias", WIDTH)
    norm(f"{eyes}.norm")
    for k in range(LAYERS):
        block = f"{eyes}.blocks.{k}"
        norm(f"{block}.norm1"), norm(f"{block}.norm2")
        linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH), linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", WIDTH, 2 * WIDTH), linear(f"{block}.mlp.fc2", 2 * WIDTH, WIDTH)
    made[f"{text}.embeddings.position_ids"] = torch.arange(PLACES)[None]
    draw(f"{text}.embeddings.word_embeddings.weight", len(WORDS) + 2, WIDTH)
    draw(f"{text}.embeddings.position_embeddings.weight", PLACES, WIDTH)
    norm(f"{text}.embeddings.LayerNorm")
    for k in range(LAYERS):
        layer = f"{text}.encoder.layer.{k}"
        for kind in ("attention", "crossattention"):
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                linear(f"{layer}.{kind}.{part}", WIDTH, WIDTH)
            norm(f"{layer}.{kind}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", WIDTH, 3 * WIDTH)
        linear(f"{layer}.output.dense", 3 * WIDTH, WIDTH)
        norm(f"{layer}.output.LayerNorm")
    linear("blip.vision_proj", WIDTH, 16), linear("blip.text_proj", WIDTH, 16)
    for k, (inputs, outputs) in HEADS.items():
        linear(f"mlp.layers.{k}", inputs, outputs)
    return made


def saved(folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """The folder with ImageReward.pt and bert's vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state() if tensors is None else tensors, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder

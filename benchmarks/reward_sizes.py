"""What the learned rewards cost on a CPU at their published sizes: weights, peak memory, time of an image.

    OMP_NUM_THREADS=1 python benchmarks/reward_sizes.py           # docs/rewards_learned.md
    OMP_NUM_THREADS=1 python benchmarks/reward_sizes.py clipscore # one of them

The networks are drawn at random, in float32; each runs in a process of its own, on pictures of 512x512. Time
is the process's, of one image of four, the least of two runs. HPSv3 (33 GB) is not run.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import BertTokenizer
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPModel, CLIPVisionModelWithProjection
from transformers.models.siglip.configuration_siglip import SiglipConfig
from transformers.models.siglip.modeling_siglip import SiglipModel

from promptloop.names import imported
from promptloop.rewards.aesthetics import LAYERS, Layers
from promptloop.rewards.imagereward import ImageReward, mlp_of, text_of, vision_of
from promptloop.rewards.known import KNOWN
from promptloop.rewards.mps import Both
from promptloop.rewards.safety import SafetyChecker
from promptloop.rewards.words import Words

IMAGES, RUNS, GB = 4, 2, 1e9
H = ((1280, 32, 16, 14), (1024, 24, 16, 1024))  # (width, layers, heads, patch) of the eyes;
L = ((1024, 24, 16, 14), (768, 12, 12, 768))  # (width, layers, heads, shared width) of the text's tower
B = ((768, 12, 12, 32), (512, 12, 8, 512))
SIZES = {"pickscore": H, "hpsv2": H, "hpsv2.1": H, "mps": H, "clip-cosine": L, "clipscore": B}
HEADS = {"aesthetic": (768, 1024, 128, 64, 16, 1), "aesthetic-linear": (768, 1)}
NAMES = (*SIZES, "siglip", *HEADS, "imagereward", "safety")


def eyes(size: tuple[int, int, int, int]) -> dict[str, Any]:
    width, layers, heads, patch = size
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "patch_size": patch, "image_size": 224}  # fmt: skip


def clip(size: Any) -> CLIPModel:
    seen, (width, layers, heads, shared) = size
    text = {"vocab_size": 49408, "hidden_size": width, "intermediate_size": 4 * width, "eos_token_id": 1,
            "num_hidden_layers": layers, "num_attention_heads": heads, "bos_token_id": None,
            "pad_token_id": None}  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=eyes(seen), projection_dim=shared))


def words(length: int, end: str) -> Words:
    tokenizer = Tokenizer(WordLevel({"red": 0, end: 1}, unk_token="red"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Words(tokenizer, length=length, end=end)


def shapes(**of: tuple[int, ...]) -> dict[str, Tensor]:
    """Tensors that have a shape and nothing else, by dotted names with two underscores for a dot."""
    return {name.replace("__", "."): torch.empty(size, device="meta") for name, size in of.items()}


def crossed(network: CLIPModel) -> Both:
    """MPS's four layers of 16 heads, by the release's code."""
    rows = {f"cross__{k}__0__to_q__weight": (1024, 1024) for k in range(4)}
    return Both(network, shapes(**rows, cross__0__0__ff__2__weight=(1024, 4096)))


def siglip() -> SiglipModel:
    both = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    }
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    text = {**both, "vocab_size": 32000, "max_position_embeddings": 64, **ends}
    return SiglipModel(
        SiglipConfig(text_config=text, vision_config={**both, "image_size": 384, "patch_size": 14})
    )


def blip() -> Any:
    """ViT-L/16 and BERT, from the shapes by which ImageReward is built."""
    at, said = "vision.encoder.layers.{}.mlp.fc1.weight", "text.encoder.layer.{}.intermediate.dense.weight"
    rows = {at.format(k).replace(".", "__"): (4096, 1024) for k in range(24)}
    rows |= {said.format(k).replace(".", "__"): (3072, 768) for k in range(12)}
    tensors = shapes(
        **rows,
        vision__embeddings__patch_embedding__weight=(1024, 3, 16, 16),
        vision__embeddings__position_embedding=(1, 197, 1024),
        text__embeddings__word_embeddings__weight=(30524, 768),
        text__embeddings__position_embeddings__weight=(512, 768),
        text__encoder__layer__0__crossattention__self__key__weight=(768, 1024),
        **{f"mlp__{k}__weight": (out, into) for k, into, out in
           ((0, 768, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1))},
    )  # fmt: skip
    vocabulary = {word: k for k, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red"))}
    return ImageReward(vision_of(tensors), text_of(tensors), mlp_of(tensors), BertTokenizer(vocab=vocabulary))


def made(name: str) -> Any:
    if name == "imagereward":
        return blip()
    if name == "safety":
        return SafetyChecker(
            StableDiffusionSafetyChecker(CLIPConfig(vision_config=eyes(L[0]), projection_dim=768))
        )
    kind = imported(KNOWN[name].made, "reward")
    if name == "siglip":
        return kind(siglip(), words(64, "</s>"))
    if widths := HEADS.get(name):
        seen = CLIPVisionModelWithProjection(CLIPVisionConfig(**eyes(L[0]), projection_dim=768))
        sides = dict(zip(LAYERS, zip(widths[1:], widths, strict=False), strict=False))
        mlp = {f"layers__{k}__weight": side for k, side in sides.items()}
        return kind(seen, nn.Linear(768, 1) if len(widths) == 2 else Layers(shapes(**mlp)))
    network = clip(SIZES[name])
    return kind(crossed(network) if name == "mps" else network, words(77, "<|endoftext|>"))


@torch.no_grad()
def row(name: str) -> str:
    reward, spent = made(name), list[float]()
    network = reward if isinstance(reward, nn.Module) else reward.network
    network.eval()
    images, queries = torch.rand(IMAGES, 3, 512, 512), ["red"] * IMAGES
    for _ in range(RUNS):
        begun = time.process_time()
        reward(images, queries)
        spent.append(time.process_time() - begun)
    weights = sum(tensor.numel() for tensor in network.parameters()) * 4 / GB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
    each = min(spent) / IMAGES
    return f"{name:18s} weights {weights:.2f} GB, process at its peak {peak:.1f} GB, {each:.2f} s an image"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if names := sys.argv[1:]:
        print("\n".join(map(row, names)), flush=True)
        return
    for name in NAMES:
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()

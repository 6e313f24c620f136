"""Checkpoints of CLIP-type rewards, tiny and random, in the names and files of the released ones."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor

State = dict[str, Tensor]
PLACES, SIDE, PATCH, LAYERS, SHARED = (
    10,
    2,
    16,
    2,
    24,
)  # tokens, patches a side, their size, layers, shared width
SEES, READS = 160, 128  # two heads of 80 (as ViT-H) over the picture, two of 64 over the text
WORDS = [
    "red",
    "circle",
    "star",
    "a",
    "photo",
    "depicts",
    "light",
    "color",
    "<|startoftext|>",
    "<|endoftext|>",
]


class Draw:
    """Named random tensors."""

    def __init__(self, seed: int = 0) -> None:
        self.rng, self.made = torch.Generator().manual_seed(seed), State()

    def __call__(self, name: str, *shape: int, around: float = 0.0, wide: float = 0.2) -> None:
        self.made[name] = around + wide * torch.randn(shape, generator=self.rng)

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        self(f"{name}.weight", outputs, inputs)
        if bias:
            self(f"{name}.bias", outputs)

    def norm(self, name: str, width: int) -> None:
        self(f"{name}.weight", width, around=1.0)
        self(f"{name}.bias", width)


def layers(draw: Draw, tower: str, width: int) -> None:
    """A transformer's layers by transformers' names."""
    for k in range(LAYERS):
        at = f"{tower}.encoder.layers.{k}"
        for part in "qkv":
            draw.linear(f"{at}.self_attn.{part}_proj", width, width)
        draw.linear(f"{at}.self_attn.out_proj", width, width)
        draw.norm(f"{at}.layer_norm1", width), draw.norm(f"{at}.layer_norm2", width)
        draw.linear(f"{at}.mlp.fc1", width, 2 * width), draw.linear(f"{at}.mlp.fc2", 2 * width, width)


def clip(seed: int = 0, sees: int = SEES) -> State:
    """transformers' names, with the counters that old versions saved."""
    draw, text, eyes = Draw(seed), "text_model", "vision_model"
    draw(f"{text}.embeddings.token_embedding.weight", len(WORDS), READS)
    draw(f"{text}.embeddings.position_embedding.weight", PLACES, READS)
    layers(draw, text, READS), draw.norm(f"{text}.final_layer_norm", READS)
    draw(f"{eyes}.embeddings.class_embedding", sees)
    draw(f"{eyes}.embeddings.patch_embedding.weight", sees, 3, PATCH, PATCH, wide=0.05)
    draw(f"{eyes}.embeddings.position_embedding.weight", SIDE**2 + 1, sees)
    (
        draw.norm(f"{eyes}.pre_layrnorm", sees),
        layers(draw, eyes, sees),
        draw.norm(f"{eyes}.post_layernorm", sees),
    )
    draw.linear("visual_projection", sees, SHARED, bias=False)
    draw.linear("text_projection", READS, SHARED, bias=False)
    draw.made["logit_scale"] = torch.tensor(2.5)
    for tower, places in ((text, PLACES), (eyes, SIDE**2 + 1)):
        draw.made[f"{tower}.embeddings.position_ids"] = torch.arange(places)[None]
    return draw.made


def open_clip(seed: int = 0) -> State:
    """open_clip's names and shapes, drawn on their own."""
    draw = Draw(seed)
    draw("positional_embedding", PLACES, READS), draw("text_projection", READS, SHARED)
    draw("token_embedding.weight", len(WORDS), READS), draw.norm("ln_final", READS)
    draw("visual.class_embedding", SEES), draw("visual.positional_embedding", SIDE**2 + 1, SEES)
    draw("visual.proj", SEES, SHARED), draw("visual.conv1.weight", SEES, 3, PATCH, PATCH, wide=0.05)
    draw.norm("visual.ln_pre", SEES), draw.norm("visual.ln_post", SEES)
    for tower, width in (("", READS), ("visual.", SEES)):
        for k in range(LAYERS):
            at = f"{tower}transformer.resblocks.{k}"
            draw(f"{at}.attn.in_proj_weight", 3 * width, width), draw(f"{at}.attn.in_proj_bias", 3 * width)
            draw.linear(f"{at}.attn.out_proj", width, width)
            draw.norm(f"{at}.ln_1", width), draw.norm(f"{at}.ln_2", width)
            draw.linear(f"{at}.mlp.c_fc", width, 2 * width), draw.linear(f"{at}.mlp.c_proj", 2 * width, width)
    draw.made["logit_scale"] = torch.tensor(2.5)
    return draw.made


def siglip(seed: int = 0) -> State:
    """transformers' names; heads of 72, as so400m's."""
    draw, text, eyes, width = Draw(seed), "text_model", "vision_model", 144
    draw(f"{text}.embeddings.token_embedding.weight", len(WORDS) + 1, width)
    draw(f"{text}.embeddings.position_embedding.weight", PLACES, width)
    layers(draw, text, width), draw.norm(f"{text}.final_layer_norm", width)
    draw.linear(f"{text}.head", width, width)
    draw(f"{eyes}.embeddings.patch_embedding.weight", width, 3, PATCH, PATCH, wide=0.05)
    draw(f"{eyes}.embeddings.patch_embedding.bias", width)
    draw(f"{eyes}.embeddings.position_embedding.weight", SIDE**2, width)
    layers(draw, eyes, width), draw.norm(f"{eyes}.post_layernorm", width)
    draw(f"{eyes}.head.probe", 1, 1, width)
    draw(f"{eyes}.head.attention.in_proj_weight", 3 * width, width)
    draw(f"{eyes}.head.attention.in_proj_bias", 3 * width)
    draw.linear(f"{eyes}.head.attention.out_proj", width, width), draw.norm(f"{eyes}.head.layernorm", width)
    (
        draw.linear(f"{eyes}.head.mlp.fc1", width, 2 * width),
        draw.linear(f"{eyes}.head.mlp.fc2", 2 * width, width),
    )
    draw.made |= {"logit_scale": torch.tensor([2.5]), "logit_bias": torch.tensor([-3.0])}
    return draw.made


def mps(seed: int = 0) -> State:
    """The release's state_dict: CLIP behind "model.", then layers that look at the text."""
    draw, inner = Draw(seed + 1), 4 * SHARED
    for k in range(LAYERS):
        look, turn = (f"cross_model.layers.{k}.{part}.fn" for part in (0, 1))
        for at in (look, turn):
            draw(f"{at}.norm.weight", SHARED, around=1.0)
            draw.made[f"{at}.norm.bias"] = torch.zeros(SHARED)
        (
            draw.linear(f"{look}.to_q", SHARED, 128, bias=False),
            draw.linear(f"{look}.to_kv", SHARED, 128, bias=False),
        )
        draw.linear(f"{look}.to_out", 128, SHARED, bias=False)
        draw.linear(f"{look}.ff.0", SHARED, 2 * inner, bias=False)
        draw.linear(f"{look}.ff.2", inner, SHARED, bias=False)
        draw.made[f"{turn}.rotary_emb.inv_freq"] = 10000.0 ** -(torch.arange(0, 64, 2) / 64)
        draw.linear(f"{turn}.fused_attn_ff_proj", SHARED, 256 + 2 * inner, bias=False)
        draw.linear(f"{turn}.attn_out", 128, SHARED, bias=False)
        draw.linear(f"{turn}.ff_out.1", inner, SHARED, bias=False)
    return {f"model.{name}": value for name, value in clip(seed + 2).items()} | draw.made


def aesthetic(seed: int = 0) -> State:
    """The MLP's names; dropout between its layers."""
    draw = Draw(seed + 2)
    for k, (inputs, outputs) in {0: (SHARED, 32), 2: (32, 16), 4: (16, 8), 6: (8, 4), 7: (4, 1)}.items():
        draw.linear(f"layers.{k}", inputs, outputs)
    return draw.made


def words(folder: Path, end: str = "<|endoftext|>") -> None:
    """tokenizer.json of whole words in CLIP's style: lower case, start and end; SigLIP's has an end only."""
    start = "<|startoftext|>"
    known = WORDS if end in WORDS else [*WORDS, end]
    made = Tokenizer(WordLevel({word: k for k, word in enumerate(known)}, unk_token=end))
    made.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), behavior="removed", invert=True)
    ids = {token: known.index(token) for token in (start, end)}
    single = f"{start} $A {end}" if end in WORDS else f"$A {end}"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[*ids.items()])
    made.save(str(folder / "tokenizer.json"))


def saved(
    folder: Path, file: str, state: State, end: str = "<|endoftext|>", config: dict | None = None
) -> Path:
    """The folder with the weights (.pt as HPSv2's, under "state_dict"), tokenizer.json, maybe config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file({name: value.contiguous() for name, value in state.items()}, folder / file)
    else:
        torch.save({"epoch": 7, "state_dict": state} if file.endswith(".pt") else state, folder / file)
    words(folder, end)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder

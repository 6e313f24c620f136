"""CLIP, SigLIP and MPS written out slowly from their tensors: one picture, one text, head by head."""

import math

import tiny_clips as tiny
import torch
from torch import Tensor

State = dict[str, Tensor]


def norm(w: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"]
        + w[f"{name}.bias"]
    )


def linear(w: State, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def quick(x: Tensor) -> Tensor:
    return x / (1 + (-1.702 * x).exp())


def tanhed(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(q: Tensor, k: Tensor, v: Tensor, head: int, shut: Tensor | None = None) -> Tensor:
    """[P, W] and [T, W]; keys and values one head wide serve all heads. shut: [P, T]."""
    heads = []
    for at in range(0, q.shape[1], head):
        mine = slice(at, at + head) if k.shape[1] > head else slice(0, head)
        weights = (q[:, at : at + head] @ k[:, mine].T / math.sqrt(head)).exp()
        weights = weights if shut is None else weights * ~shut
        heads.append(weights / weights.sum(1, keepdim=True) @ v[:, mine])
    return torch.cat(heads, 1)


def tower(w: State, name: str, x: Tensor, head: int, act, causal: bool = False, eps: float = 1e-5) -> Tensor:
    shut = torch.ones(len(x), len(x), dtype=torch.bool).triu(1) if causal else None
    for k in range(tiny.LAYERS):
        at = f"{name}.encoder.layers.{k}"
        y = norm(w, f"{at}.layer_norm1", x, eps)
        q, key, v = (linear(w, f"{at}.self_attn.{part}_proj", y) for part in "qkv")
        x = x + linear(w, f"{at}.self_attn.out_proj", attention(q, key, v, head, shut))
        y = norm(w, f"{at}.layer_norm2", x, eps)
        x = x + linear(w, f"{at}.mlp.fc2", act(linear(w, f"{at}.mlp.fc1", y)))
    return x


def open_tower(w: State, name: str, x: Tensor, head: int, causal: bool = False) -> Tensor:
    """The same by open_clip's names."""
    shut = torch.ones(len(x), len(x), dtype=torch.bool).triu(1) if causal else None
    for k in range(tiny.LAYERS):
        at = f"{name}resblocks.{k}"
        y = norm(w, f"{at}.ln_1", x)
        rows = y @ w[f"{at}.attn.in_proj_weight"].T + w[f"{at}.attn.in_proj_bias"]
        width = x.shape[1]
        q, key, v = rows[:, :width], rows[:, width : 2 * width], rows[:, 2 * width :]
        x = x + linear(w, f"{at}.attn.out_proj", attention(q, key, v, head, shut))
        x = x + linear(w, f"{at}.mlp.c_proj", gelu(linear(w, f"{at}.mlp.c_fc", norm(w, f"{at}.ln_2", x))))
    return x


def patches(weight: Tensor, picture: Tensor) -> Tensor:
    """[3, S, S] to [patches, W], row by row."""
    cut = [
        picture[:, i * tiny.PATCH : (i + 1) * tiny.PATCH, j * tiny.PATCH : (j + 1) * tiny.PATCH]
        for i in range(tiny.SIDE)
        for j in range(tiny.SIDE)
    ]
    return torch.stack([torch.einsum("ochw,chw->o", weight, piece) for piece in cut])


def ids(text: str, full: bool = False) -> list[int]:
    """Start, words, end, at most PLACES; `full`: filled up with ends."""
    begin, end = tiny.WORDS.index("<|startoftext|>"), tiny.WORDS.index("<|endoftext|>")
    inside = [tiny.WORDS.index(word) if word in tiny.WORDS else end for word in words(text)]
    found = [begin, *inside[: tiny.PLACES - 2], end]
    return found + [end] * (tiny.PLACES - len(found)) * full


def words(text: str) -> list[str]:
    return text.lower().replace(",", " ").replace(".", " ").split()


def reads(w: State, tokens: list[int], act=gelu) -> Tensor:
    """[T, W] of transformers' CLIP, normed."""
    at = "text_model.embeddings"
    x = w[f"{at}.token_embedding.weight"][tokens] + w[f"{at}.position_embedding.weight"][: len(tokens)]
    return norm(w, "text_model.final_layer_norm", tower(w, "text_model", x, 64, act, causal=True))


def sees(w: State, picture: Tensor, head: int = 80, act=gelu) -> Tensor:
    """[P + 1, W], not yet normed."""
    at = "vision_model.embeddings"
    x = torch.cat([w[f"{at}.class_embedding"][None], patches(w[f"{at}.patch_embedding.weight"], picture)])
    x = norm(w, "vision_model.pre_layrnorm", x + w[f"{at}.position_embedding.weight"])
    return tower(w, "vision_model", x, head, act)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b) / (a.square().sum().sqrt() * b.square().sum().sqrt()))


def embedded(w: State, picture: Tensor, head: int = 80, act=gelu) -> Tensor:
    x = norm(w, "vision_model.post_layernorm", sees(w, picture, head, act)[0])
    return linear(w, "visual_projection", x)


def clip(w: State, picture: Tensor, text: str, head: int = 80, act=gelu) -> float:
    """The cosine; the text is read where its first end stands."""
    tokens = ids(text)
    first = tokens.index(tiny.WORDS.index("<|endoftext|>"))
    return cosine(embedded(w, picture, head, act), linear(w, "text_projection", reads(w, tokens, act)[first]))


def open_clip(w: State, picture: Tensor, text: str) -> float:
    x = torch.cat([w["visual.class_embedding"][None], patches(w["visual.conv1.weight"], picture)])
    x = norm(w, "visual.ln_pre", x + w["visual.positional_embedding"])
    seen = norm(w, "visual.ln_post", open_tower(w, "visual.transformer.", x, 80)[0]) @ w["visual.proj"]
    tokens = ids(text)
    y = w["token_embedding.weight"][tokens] + w["positional_embedding"][: len(tokens)]
    said = norm(w, "ln_final", open_tower(w, "transformer.", y, 64, causal=True))
    return cosine(seen, said[tokens.index(max(tokens))] @ w["text_projection"])  # the end has the highest id


def siglip(w: State, picture: Tensor, text: str) -> float:
    inside = [tiny.WORDS.index(word) for word in words(text)][: tiny.PLACES - 1]
    tokens = inside + [len(tiny.WORDS)] * (tiny.PLACES - len(inside))  # the end, and again to the full length
    at = "text_model.embeddings"
    x = w[f"{at}.token_embedding.weight"][tokens] + w[f"{at}.position_embedding.weight"]
    x = norm(w, "text_model.final_layer_norm", tower(w, "text_model", x, 72, tanhed, eps=1e-6), 1e-6)
    said = linear(w, "text_model.head", x[-1])
    at = "vision_model.embeddings"
    x = patches(w[f"{at}.patch_embedding.weight"], picture) + w[f"{at}.patch_embedding.bias"]
    x = tower(w, "vision_model", x + w[f"{at}.position_embedding.weight"], 72, tanhed, eps=1e-6)
    x, head = norm(w, "vision_model.post_layernorm", x, 1e-6), "vision_model.head"
    rows, bias = (w[f"{head}.attention.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias"))
    q, k, v = (y @ rows[n].T + bias[n] for n, y in enumerate((w[f"{head}.probe"][0], x, x)))
    x = linear(w, f"{head}.attention.out_proj", attention(q, k, v, 72))
    inside = tanhed(linear(w, f"{head}.mlp.fc1", norm(w, f"{head}.layernorm", x, 1e-6)))
    seen = (x + linear(w, f"{head}.mlp.fc2", inside))[0]
    return cosine(seen, said) * math.exp(float(w["logit_scale"])) + float(w["logit_bias"])


def turned(x: Tensor) -> Tensor:
    """Rotary positions, pair by pair: entries c and c + 32 of every head."""
    y = x.clone()
    for place in range(len(x)):
        for c in range(x.shape[1]):
            base, step = c // 64 * 64, c % 64
            angle = place * 10000 ** (-(step % 32) / 32)
            other = -x[place, base + step + 32] if step < 32 else x[place, base + step - 32]
            y[place, c] = x[place, c] * math.cos(angle) + other * math.sin(angle)
    return y


def gated(x: Tensor) -> Tensor:
    value, gate = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    return value * gate / (1 + (-gate).exp())


def mps(w: State, picture: Tensor, text: str, condition: str, threshold: float) -> float:
    inner = {name.removeprefix("model."): value for name, value in w.items()}
    tokens = ids(text, full=True)
    said = reads(inner, tokens)
    y = linear(inner, "text_projection", said)
    asked = linear(inner, "text_projection", reads(inner, ids(condition, full=True)))
    near = [max(float(word @ wanted) for wanted in asked) for word in y]
    shut = torch.tensor([value / max(near) <= threshold for value in near])
    x = linear(inner, "visual_projection", sees(inner, picture))
    for k in range(tiny.LAYERS):
        at = f"cross_model.layers.{k}.0.fn"
        z = norm(w, f"{at}.norm", x)
        keys = linear(w, f"{at}.to_kv", y)
        found = attention(linear(w, f"{at}.to_q", z), keys[:, :64], keys[:, 64:], 64, shut[None])
        x = x + linear(w, f"{at}.to_out", found) + linear(w, f"{at}.ff.2", gated(linear(w, f"{at}.ff.0", z)))
        at = f"cross_model.layers.{k}.1.fn"
        rows = linear(w, f"{at}.fused_attn_ff_proj", norm(w, f"{at}.norm", x))
        found = attention(turned(rows[:, :128]), turned(rows[:, 128:192]), rows[:, 192:256], 64)
        x = x + linear(w, f"{at}.attn_out", found) + linear(w, f"{at}.ff_out.1", gated(rows[:, 256:]))
    first = tokens.index(tiny.WORDS.index("<|endoftext|>"))
    end = linear(inner, "text_projection", said[first])
    return cosine(x[0], end) * math.exp(float(w["model.logit_scale"]))

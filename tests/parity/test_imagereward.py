"""ImageReward against the same mathematics written out slowly, from the tensors of the released layout."""

import math
from pathlib import Path

import pytest
import tiny_imagereward as tiny
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from promptloop.recipes.rewards import reward_named
from promptloop.rewards.imagereward import ImageReward
from promptloop.rewards.pictures import CLIP_MEAN, CLIP_STD, prepared

State = dict[str, Tensor]
TEXTS = ["a red circle", "star", " ".join(["red"] * 60)]


def norm(w: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: State, name: str, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, w[f"{name}.weight"]) + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sample's [T, W], head by head of 64."""
    heads = []
    for at in range(0, q.shape[1], 64):
        here = slice(at, at + 64)
        weights = (q[:, here] @ k[:, here].T / 8.0).exp()
        heads.append(weights / weights.sum(1, keepdim=True) @ v[:, here])
    return torch.cat(heads, 1)


def seen(w: State, image: Tensor) -> Tensor:
    """The picture [3, 32, 32], prepared, as [5, W]."""
    eyes, patch, rows = "blip.visual_encoder", tiny.PATCH, []
    for i in range(tiny.SIDE):
        for j in range(tiny.SIDE):
            piece = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            rows.append(torch.einsum("ochw,chw->o", w[f"{eyes}.patch_embed.proj.weight"], piece))
    x = torch.stack(rows) + w[f"{eyes}.patch_embed.proj.bias"]
    x = torch.cat([w[f"{eyes}.cls_token"][0], x]) + w[f"{eyes}.pos_embed"][0]
    for k in range(tiny.LAYERS):
        block = f"{eyes}.blocks.{k}"
        q, key, v = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.proj", attention(q, key, v))
        inside = gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x, 1e-6)))
        x = x + linear(w, f"{block}.mlp.fc2", inside)
    return norm(w, f"{eyes}.norm", x, 1e-6)


def attended(w: State, name: str, x: Tensor, to: Tensor) -> Tensor:
    q, k, v = (linear(w, f"{name}.self.{part}", y) for part, y in (("query", x), ("key", to), ("value", to)))
    out = linear(w, f"{name}.output.dense", attention(q, k, v))
    return norm(w, f"{name}.output.LayerNorm", out + x, 1e-12)


def slow(state: State, image: Tensor, text: str) -> float:
    """No padding, no batch, no mask: 35 tokens at most."""
    w = {name: value.double() for name, value in state.items()}
    picture, at = seen(w, image.double()), {word: k for k, word in enumerate(tiny.WORDS)}
    ids = [at["[CLS]"], *[at[word] for word in text.split()][:33], at["[SEP]"]]
    place = "blip.text_encoder.embeddings"
    x = w[f"{place}.word_embeddings.weight"][ids] + w[f"{place}.position_embeddings.weight"][: len(ids)]
    x = norm(w, f"{place}.LayerNorm", x, 1e-12)
    for k in range(tiny.LAYERS):
        layer = f"blip.text_encoder.encoder.layer.{k}"
        x = attended(w, f"{layer}.attention", x, x)
        x = attended(w, f"{layer}.crossattention", x, picture)
        inside = linear(w, f"{layer}.output.dense", gelu(linear(w, f"{layer}.intermediate.dense", x)))
        x = norm(w, f"{layer}.output.LayerNorm", inside + x, 1e-12)
    y = x[0]
    for k in tiny.HEADS:
        y = linear(w, f"mlp.layers.{k}", y)
    return (float(y) - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tmp_path_factory.mktemp("imagereward"))


def test_the_reward_is_what_its_formula_says(folder: Path) -> None:
    """Fails when a tensor is renamed wrongly, a mask forgotten, the text read causally, or cut elsewhere.

    One-line break tried: is_decoder=True in `_scores`.
    """
    reward, state = ImageReward.load(str(folder)), tiny.state()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ready = prepared(images, 32)
    wanted = [slow(state, image, text) for image, text in zip(ready, TEXTS, strict=True)]
    assert max(wanted) - min(wanted) > 0.05
    assert reward(images, TEXTS).tolist() == pytest.approx(wanted, abs=1e-5)
    reward.batch = 2
    assert reward(images, TEXTS).tolist() == pytest.approx(wanted, abs=1e-5)
    wider = images.clone().requires_grad_()
    reward(wider, TEXTS).sum().backward()
    assert all(float(grad.abs().max()) > 0 for grad in wider.grad)


def test_pictures_are_prepared_as_the_release_does() -> None:
    """PIL's bicubic resize to the shorter side, the middle, CLIP's numbers. Fails with another filter,
    without antialiasing, or when the longer side is resized.
    """
    rng = torch.Generator().manual_seed(0)
    rough = torch.rand(3, 7, 10, generator=rng)[None]
    image = torch.nn.functional.interpolate(rough, (84, 120), mode="bicubic").clamp(0, 1)
    bytes_ = (image * 255).round().to(torch.uint8)
    picture = Image.fromarray(bytes_[0].permute(1, 2, 0).numpy()).resize((45, 32), Image.Resampling.BICUBIC)
    left = round((45 - 32) / 2)
    cut = torch.tensor(list(picture.crop((left, 0, left + 32, 32)).tobytes())).view(32, 32, 3) / 255
    wanted = (cut - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    found = prepared(bytes_.float() / 255, 32)[0].permute(1, 2, 0)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1.5 / 255 / min(CLIP_STD)  # PIL rounds to whole bytes twice
    assert CLIP_MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert CLIP_STD == (0.26862954, 0.26130258, 0.27577711)


def test_what_does_not_fit_is_told(folder: Path, tmp_path: Path) -> None:
    """Fails when a checkpoint with other tensors is loaded in silence, or pickled code is run."""
    state = tiny.state()
    lacking = {name: t for name, t in state.items() if "crossattention.self.value.bias" not in name}
    surplus = state | {"blip.visual_encoder_m.norm.bias": torch.zeros(4)}
    odd = state | {"mlp.layers.7.bias": torch.zeros(2)}
    empty = {"weight": torch.zeros(2)}
    for tensors, wanted in ((lacking, "lacks 2 tensors"), (surplus, "has left over 1 tensors"),
                            (odd, "has another shape of"), (empty, "is missing")):  # fmt: skip
        with pytest.raises(ValueError, match=wanted):
            ImageReward.load(str(tiny.saved(tmp_path / "odd", tensors)))
    torch.save({"state": Path("code")}, tmp_path / "odd" / "ImageReward.pt")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        ImageReward.load(str(tmp_path / "odd"))
    for name, wanted in (("imagereward", "give imagereward:FOLDER"), ("imagereward:nowhere", "give a folder"),
                         (f"imagereward:{tmp_path}", "has no ImageReward.pt"),
                         ("imagereward:no/body", "no ImageReward.pt of no/body"),
                         ("imagrewrd", "did you mean 'imagereward'"),
                         ("imagrewrd:here", "did you mean 'imagereward:here'")):  # fmt: skip
        with pytest.raises(ValueError, match=wanted):
            reward_named(name)
    save_file(state, tmp_path / "ImageReward.safetensors")
    (tmp_path / "vocab.txt").write_text((folder / "vocab.txt").read_text())
    images = torch.rand(1, 3, 48, 32)
    one, other = (reward_named(f"imagereward:{place}")(images, ["a star"]) for place in (folder, tmp_path))
    assert torch.equal(one, other)

"""CLIP-type rewards against the same mathematics written out slowly, from tensors in the released layouts."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slow_clips as slow
import tiny_clips as tiny
import torch
from torch import Tensor

from promptloop.recipes.rewards import reward_named
from promptloop.rewards.mps import CONDITION
from promptloop.rewards.pictures import padded, prepared, processed, squeezed

TEXTS = ["a red circle", "star", " ".join(["Photo red"] * 9)]
SIDE = tiny.SIDE * tiny.PATCH
HF, PT = "model.safetensors", "HPS_v2.1_compressed.pt"
HEADS = {"text_config": {"num_attention_heads": 2}, "vision_config": {"num_attention_heads": 2}}
QUICK = {"model_type": "clip", **HEADS}  # what CLIP's config leaves out is quick_gelu
MLP, LINEAR = "sac+logos+ava1-l14-linearMSE.pth", "sa_0_4_vit_l_14_linear.pth"


def eyes() -> dict[str, Tensor]:
    return {name: value.double() for name, value in tiny.clip(sees=128).items()}


def straight(w: dict[str, Tensor], picture: Tensor, _: str) -> float:
    x = slow.embedded(eyes(), picture, 64, slow.quick)
    x = x / x.square().sum().sqrt()
    for k in (0, 2, 4, 6, 7):
        x = slow.linear(w, f"layers.{k}", x)
    return float(x)


def line(w: dict[str, Tensor], picture: Tensor, _: str) -> float:
    x = slow.embedded(eyes(), picture, 64, slow.quick)
    return float(w["weight"][0] @ x / x.square().sum().sqrt() + w["bias"])


def linear_head() -> dict[str, Tensor]:
    return {"weight": 0.2 * torch.randn(1, tiny.SHARED, generator=torch.Generator().manual_seed(3)),
            "bias": torch.tensor([5.0])}  # fmt: skip


# name -> the file, its tensors, how the picture is prepared, the slow score of a prepared picture and a text
CASES: dict[str, tuple[str, Callable[[], dict[str, Tensor]], Any, Callable[..., float]]] = {
    "pickscore": (HF, tiny.clip, processed, lambda w, x, t: slow.clip(w, x, t) * math.exp(2.5)),
    "hpsv2": (HF, tiny.clip, padded, slow.clip),
    "hpsv2.1": (PT, tiny.open_clip, padded, slow.open_clip),
    "clipscore": (
        "pytorch_model.bin",
        lambda: tiny.clip(sees=128),
        prepared,
        lambda w, x, t: 2.5 * max(0, slow.clip(w, x, "A photo depicts " + t, 64, slow.quick)),
    ),
    "clip-cosine": (HF, tiny.clip, processed, lambda w, x, t: slow.clip(w, x, t, 80, slow.quick)),
    "siglip": (HF, tiny.siglip, squeezed, slow.siglip),
    "mps": (HF, tiny.mps, processed, lambda w, x, t: slow.mps(w, x, t, CONDITION, 0.3)),
    "aesthetic": (MLP, tiny.aesthetic, prepared, straight),
    "aesthetic-linear": (LINEAR, linear_head, prepared, line),
}


def made(name: str, folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    file, tensors, _, _ = CASES[name]
    end = "</s>" if name == "siglip" else "<|endoftext|>"
    config = QUICK if name == "clip-cosine" else None
    tiny.saved(folder, file, tensors() if state is None else state, end, config)
    if name.startswith("aesthetic"):
        tiny.saved(folder, HF, tiny.clip(sees=128))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: made(name, tmp_path_factory.mktemp(name)) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_reward_is_what_its_formula_says(name: str, folders: dict[str, Path]) -> None:
    """Fails when a tensor is renamed or split wrongly, the heads, activation, mask, scale or ending are
    others, or when a sample depends on its batch.

    One-line breaks tried: `head=160` for PickScore; `OPEN` 0.01; gate and value exchanged; no bias in SigLIP;
    MPS's angles in float32 (1e-9 apart no more, 1e-5 still).
    """
    _, tensors, view, score = CASES[name]
    reward: Any = reward_named(f"{name}:{folders[name]}")
    images = torch.rand(3, 3, 40, 52, generator=torch.Generator().manual_seed(1))
    w = {n: value.double() for n, value in tensors().items()}
    ready = view(images, SIDE).double()
    wanted = [score(w, picture, text) for picture, text in zip(ready, TEXTS, strict=True)]
    assert max(wanted) - min(wanted) > 0.02
    assert reward.differentiable and not reward.training
    found = reward(images, TEXTS)
    assert found.shape == (3,) and found.tolist() == pytest.approx(wanted, abs=1e-5)
    reward.batch = 2
    assert reward(images, TEXTS).tolist() == pytest.approx(wanted, abs=1e-5)
    assert float(reward(images[1:2], TEXTS[1:2])) == pytest.approx(wanted[1], abs=1e-5)
    with pytest.raises(ValueError, match="2 queries for 3 images"):
        reward(images, TEXTS[:2])
    ready, exact = view(images.double(), SIDE), reward.double()(images.double(), TEXTS)  # nothing is rounded
    wanted = [score(w, picture, text) for picture, text in zip(ready, TEXTS, strict=True)]
    assert exact.tolist() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_slopes(name: str, folders: dict[str, Path]) -> None:
    """Along one direction, in double precision, against central differences. Fails when something on the way
    is detached or rounded (tried: `.detach()` on what the view makes).
    """
    reward: Any = reward_named(f"{name}:{folders[name]}").double()
    rng = torch.Generator().manual_seed(2)
    image = (0.3 + 0.4 * torch.rand(2, 3, 36, 44, generator=rng)).double().requires_grad_()
    way = torch.randn(image.shape, generator=rng).double()
    before = reward(image, TEXTS[:2])
    before.sum().backward()
    slope, step = float((image.grad * way).sum()), 1e-5
    with torch.no_grad():
        ahead, behind = (reward(image + side * step * way, TEXTS[:2]).sum() for side in (1, -1))
    assert abs(slope) > 1e-4 or (name == "clipscore" and float(before.max()) == 0)
    assert float(ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_told(name: str, tmp_path: Path) -> None:
    """Fails when a checkpoint with other tensors is loaded in silence (tried: `if False` in `fill`)."""
    state = CASES[name][1]()
    gone = next(
        n for n in reversed(state) if "rotary" not in n and "position_ids" not in n and "scale" not in n
    )
    lacking = {n: value for n, value in state.items() if n != gone}
    surplus = state | {"other.weight": torch.zeros(2)}
    odd = state | {gone: torch.zeros(3, *state[gone].shape)}
    nothing = {"nothing.here": torch.zeros(2)}
    for tensors, wanted in ((lacking, "lacks 1 tensors"), (surplus, "has left over 1 tensors"),
                            (odd, "has another shape of 1"), (nothing, "is missing")):  # fmt: skip
        with pytest.raises(ValueError, match=wanted):
            reward_named(f"{name}:{made(name, tmp_path, tensors)}")


def test_mps_looks_at_the_words_that_are_asked_about(folders: dict[str, Path]) -> None:
    """At 0.3 some words of these texts are shut out, at 0.01 (the release's training) none. Fails when the
    threshold is another, or does nothing.
    """
    reward: Any = reward_named(f"mps:{folders['mps']}")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    w = {n: value.double() for n, value in tiny.mps().items()}
    scores = {}
    for threshold in (reward.threshold, 0.01):
        reward.threshold = threshold
        found = reward(images, TEXTS[1:])
        wanted = [slow.mps(w, x, t, CONDITION, threshold)
                  for x, t in zip(processed(images, SIDE).double(), TEXTS[1:], strict=True)]  # fmt: skip
        assert found.tolist() == pytest.approx(wanted, abs=1e-5)
        scores[threshold] = found
    assert float((scores[0.3] - scores[0.01]).abs().min()) > 1e-3


def test_other_words_and_settings_are_told(tmp_path: Path) -> None:
    """Fails when another family's tokenizer or config is taken, or code is unpickled."""
    folder = made("pickscore", tmp_path)
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ValueError, match="is of a 'siglip', not of a 'clip'"):
        reward_named(f"pickscore:{folder}")
    (folder / "config.json").unlink()
    tiny.words(folder, "</s>")
    with pytest.raises(ValueError, match="has 11 words, the weights have 10"):
        reward_named(f"pickscore:{folder}")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        reward_named(f"pickscore:{folder}")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        reward_named(f"pickscore:{folder}")
    tiny.words(folder)
    torch.save({"model": Path("code")}, folder / "MPS_overall_checkpoint.pth")
    for name, wanted in (("mps", "holds more than tensors"),
                         ("pickscore:no/body", "no model.safetensors of no/body"),
                         ("hpsv2.1:no/body", "no HPS_v2.1_compressed.pt of no/body"),
                         ("aesthetic-linear:no/body", "no sa_0_4_vit_l_14_linear.pth")):  # fmt: skip
        with pytest.raises(ValueError, match=wanted):
            reward_named(f"{name}:{folder}" if name == "mps" else name)
    for name in ("aesthetic-linear", "siglip"):
        with pytest.raises(ValueError, match=f"give {name}:FOLDER with"):
            reward_named(name)

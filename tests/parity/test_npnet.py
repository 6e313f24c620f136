"""NPNet on latents of real classes, tiny and random, in float32 and bfloat16; its weights, ours and released.

That a released checkpoint means the same here was checked by hand against timm's own Swin (docs/methods).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from promptloop.controls import CFG, GoldenNoise
from promptloop.controls.npnet import NPNet, Shape
from promptloop.controls.npnet_weights import load, save
from promptloop.denoisers import from_pipeline
from promptloop.sample import sample

SWIN = {"image": 32, "patch": 2, "width": 8, "depths": (2, 2), "heads": (2, 4), "window": 4}
TINY = Shape(side=8, text=24 * 32, hidden=8, wide=8, **SWIN)
PROMPTS, SEEDS = ["a red circle", "two blue stars"], [3, 4]


def network() -> NPNet:
    """Random in every weight."""
    made, drawn = NPNet(TINY), torch.Generator().manual_seed(0)
    for weight in made.parameters():
        weight.data.add_(0.1 * torch.randn(weight.shape, generator=drawn))
    return made.requires_grad_(False).eval()


def released(net: NPNet, misspelt: bool) -> dict[str, Any]:
    """Its weights as the release has them: timm's Swin, and what nothing reads."""
    swin: dict[str, Any] = {"layers.0.blocks.1.attn_mask": torch.zeros(1), "head.fc.bias": torch.zeros(3)}
    state = net.residual.swin.state_dict()
    short = (
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.norm", "patch_embed.norm"), ("encoder.", ""), ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"), ("attention.o_proj", "attn.proj"), ("layernorm", "norm"),
        ("attention.relative_position_bias.", "attn."), ("layers.0.downsample", "layers.1.downsample"),
    )  # fmt: skip
    for name, value in state.items():
        if "q_proj" in name:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            swin[re.sub(r"encoder\.(.+)attention\.q_proj", r"\1attn.qkv", name)] = torch.cat(parts)
        elif not re.search("[kv]_proj", name):
            for ours, theirs in short:
                name = name.replace(ours, theirs)
            swin[name] = value
    outer = {n: t for n, t in net.residual.state_dict().items() if not n.startswith("swin.")}
    return {
        "unet_embedding": {**outer, **{f"swin.{name}": value for name, value in swin.items()}},
        "unet_svd": {**net.spectrum.state_dict(), "bn.weight": torch.ones(16)},
        "embeeding" if misspelt else "embedding": net.text.state_dict(),
        "alpha": net.alpha.requires_grad_(),
        "beta": net.beta,
    }


def test_a_new_network_gives_the_noise_back() -> None:
    """alpha = beta = 0 and no change of the singular values. With each of them off by d, so are they, the
    channels laid out two by two; with alpha, e comes on top. Fails when alpha 0 is not weight 0, when the
    channels are laid out otherwise, or the residual is not behind beta.
    """
    noise, text = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.ones(2, 24, 32)
    made = NPNet(TINY).requires_grad_(False)
    assert torch.allclose(made(noise, text), noise, atol=1e-5)
    made.spectrum.mlp4[2].bias.fill_(0.5)

    def square(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.cat([x[:, 0], x[:, 1]], 2), torch.cat([x[:, 2], x[:, 3]], 2)], 1)

    before, after = (torch.linalg.svdvals(square(x)) for x in (noise, made(noise, text)))
    assert torch.allclose(after, before + 0.5, atol=1e-5)
    plain = made(noise, text)
    made.alpha.fill_(100.0)
    assert torch.allclose(made(noise, text) - plain, made.text(noise, text.flatten(1)), atol=1e-5)
    made.beta.fill_(1.0)
    assert not torch.allclose(made(noise, text) - plain, made.text(noise, text.flatten(1)), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_golden_noise_on_a_real_pipeline(dtype: torch.dtype) -> None:
    """Fails when the network is given text in the pipeline's dtype, or a batch of two is not two samples."""
    denoiser, net = from_pipeline(tiny.sd().to(dtype)), network()
    options: dict[str, Any] = {"steps": 3, "controls": [CFG(3.0)]}
    plain = sample(denoiser, PROMPTS, seeds=SEEDS, **options)
    for strength in (0.0, 1.0):
        control = GoldenNoise(net, strength)
        made = sample(denoiser, PROMPTS, seeds=SEEDS, steps=3, controls=[control, CFG(3.0)])
        assert torch.equal(made.state.x, plain.state.x) == (strength == 0)
    assert made.state.x.dtype == torch.float32 and bool(made.images.isfinite().all())
    text = denoiser.embed(PROMPTS).fields["text"].float()
    told = sample(denoiser, PROMPTS, seeds=SEEDS, noise=net(denoiser.noise(SEEDS), text), **options)
    assert torch.allclose(told.state.x, made.state.x, atol=1e-4 if dtype == torch.float32 else 0.2)
    with pytest.raises(ValueError, match=r"prompts of 768 numbers; the backbone has \(4, 8, 8\) and 1232"):
        net(denoiser.noise([0]), torch.zeros(1, 77, 16))


def test_weights_come_back_and_the_released_layout_is_read(tmp_path: Path) -> None:
    """Bitwise the same network. Fails for a name that is not translated (the stages' downsampling)."""
    net, noise, text = network(), torch.randn(1, 4, 8, 8), torch.randn(1, 24, 32)
    save(net, tmp_path / "ours")
    for misspelt in (False, True):
        torch.save(released(net, misspelt), tmp_path / f"{misspelt}.pth")
    for where in ("ours", "False.pth", "True.pth"):
        made = load(tmp_path / where)
        assert made.shape == net.shape and not made.alpha.requires_grad
        assert torch.equal(made(noise, text), net(noise, text))


def test_what_is_missing_or_left_over_is_named(tmp_path: Path) -> None:
    """Fails when names that are missing, or left over, are not compared with the network's."""
    state = released(network(), False)
    lacks, over, odd = ({k: dict(v) if isinstance(v, dict) else v for k, v in state.items()} for _ in "abc")
    del lacks["unet_svd"]["mlp2.0.bias"]
    over["unet_svd"]["mlp5.0.bias"] = torch.zeros(1)
    odd["unet_svd"]["mlp2.0.bias"] = torch.zeros(1)
    none = {k: v for k, v in state.items() if k != "unet_svd"}
    for name, given, said in (
        ("lacks", lacks, "lacks 1 tensors of NPNet, the first 'spectrum.mlp2.0.bias'"),
        ("over", over, "has left over 1 tensors of NPNet, the first 'spectrum.mlp5.0.bias'"),
        ("odd", odd, "has another shape of 1 tensors of NPNet, the first 'spectrum.mlp2.0.bias'"),
        ("none", none, "'unet_svd.mlp1.0.weight' is missing"),
        ("more", {"alpha": Path("x")}, "holds more than tensors"),
        ("text", {"alpha": "x"}, "holds more than tensors"),
    ):
        torch.save(given, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=re.escape(said)):
            load(tmp_path / f"{name}.pth")
    with pytest.raises(ValueError, match="no NPNet at"):
        load(tmp_path / "nowhere")
    for wrong in ({"side": 6}, {"image": 30}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Shape(**wrong)

"""The embedded world's autoencoder: 64x64x3 images to 16x16x4 latents, stock ``AutoencoderKL``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.world.fit import fit
from promptloop.world.render import render
from promptloop.world.scene import Scene, random_scene

BATCH = 24


def blank() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=64,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def pixels(scenes: list[Scene]) -> Tensor:
    """Images of ``scenes`` as the autoencoder reads them: [N, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(folder: Path, *, steps: int, seed: int, device: str = "cpu") -> None:
    """Trains from scratch (or resumes) and saves a diffusers folder ``folder/vae``."""
    torch.manual_seed(seed)
    network = blank().to(device)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"{seed}/autoencoder/{step}")
        images = pixels([random_scene(rng) for _ in range(BATCH)]).to(device)
        noise = torch.Generator().manual_seed(rng.getrandbits(60))
        posterior = network.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=noise).to(
            device
        )
        decoded = network.decode(latents).sample
        # the small KL keeps latents bounded; much more of it would blur the fine attributes
        return (
            F.mse_loss(decoded, images) + 0.2 * F.l1_loss(decoded, images) + 1e-5 * posterior.kl().mean() / 64
        )

    def check(step: int) -> dict[str, float]:
        rng = random.Random(f"{seed}/autoencoder/check")
        images = pixels([random_scene(rng) for _ in range(128)]).to(device)
        latents = network.encode(images).latent_dist.mean
        return {
            "mse": round(F.mse_loss(network.decode(latents).sample, images).item(), 5),
            "latent_std": latents.std().item(),
        }

    fit(
        network,
        loss_at,
        steps=steps,
        seed=seed,
        lr=3e-3,
        folder=folder,
        average=0.995,
        check=check,
        check_every=200,
    )
    rng = random.Random(f"{seed}/autoencoder/scale")
    with torch.no_grad():
        latents = network.encode(pixels([random_scene(rng) for _ in range(512)]).to(device)).latent_dist.mean
    network.register_to_config(scaling_factor=1.0 / latents.std().item(), shift_factor=latents.mean().item())
    centre(network)
    network.save_pretrained(folder / "vae")


@torch.no_grad()
def centre(vae: Any) -> None:
    """Moves the latents' shift into the 1x1 convolutions beside them: the same images, latents of mean 0.

    Stable Diffusion's pipeline knows a scaling factor only; SD3's adds ``shift_factor``, which is 0 then.
    """
    shift = torch.full(
        (vae.config.latent_channels,),
        vae.config.shift_factor or 0.0,
        device=vae.post_quant_conv.weight.device,
    )
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift.to(
        vae.post_quant_conv.weight.dtype
    )
    vae.quant_conv.bias[: len(shift)] -= shift.to(vae.quant_conv.weight.dtype)
    vae.register_to_config(shift_factor=0.0)

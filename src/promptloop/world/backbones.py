"""The two embedded backbones: ``mini-unet`` (Stable Diffusion classes) and ``mini-flow`` (SD3 classes).

Both read 18 words of prompt and denoise the same autoencoder's 16x16x4 latents. Their text encoders are
pretrained (text_pretraining.py) and then frozen, as in the real families; the denoisers are trained on
partial, web-like captions (captions.py), and saved as ordinary diffusers folders.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptloop.world import text_pretraining
from promptloop.world.captions import caption
from promptloop.world.fit import fit
from promptloop.world.scene import Scene, random_scene
from promptloop.world.spelling import WINDOW, t5_tokenizer, tokenizer

BATCH = 32
CURATED = ("curated", "again")  # the schedules on captions with true numbers


def t5_encoder(words: Any) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(words),
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=1,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


def text_encoder(kind: type, words: Any, width: int, layers: int) -> nn.Module:
    from transformers import CLIPTextConfig

    return kind(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=3 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=WINDOW,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def blank_unet(vae: Any) -> Any:
    """An untrained mini-unet pipeline around ``vae``."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    words = tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 96, 112),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,  # in this class: the number of heads
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused with trailing spacing; diffusers warns about any other value
        timestep_spacing="trailing",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(CLIPTextModel, words, 128, 3),
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def blank_flow(vae: Any) -> Any:
    """An untrained mini-flow pipeline around ``vae``."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    words, pieces = tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=text_encoder(CLIPTextModelWithProjection, words, 64, 3),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, words, 64, 3),
        text_encoder_3=t5_encoder(pieces),
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=pieces,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def tokens(words: Any, texts: list[str], device: torch.device | str) -> Tensor:
    ids = words(
        texts, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt"
    ).input_ids
    return ids.to(device)


def unet_loss(pipe: Any, latents: Tensor, texts: list[str], noise: Tensor, uniform: Tensor) -> Tensor:
    """Epsilon matching, weighted as velocity matching with SNR cut at 5 (cf. min-SNR, arXiv 2303.09556).

    Which thing stands where is decided at high noise, where an error of the estimate hardly shows in
    epsilon: the weight (min(SNR, 5) + 1) / SNR makes it count, up to 20 times (docs/log.md).
    """
    t = (uniform * 1000).long().clamp(max=999)
    abar = pipe.scheduler.alphas_cumprod.to(latents.device)[t].view(-1, 1, 1, 1)
    x = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    text = pipe.text_encoder(tokens(pipe.tokenizer, texts, latents.device))[0]
    error = (pipe.unet(x, t, text).sample - noise).square().mean(dim=(1, 2, 3))
    snr = (abar / (1 - abar)).flatten()
    weight = ((snr.clamp(max=5.0) + 1) / snr).clamp(max=20.0)
    return (weight * error).mean()


def flow_loss(pipe: Any, latents: Tensor, texts: list[str], noise: Tensor, uniform: Tensor) -> Tensor:
    """Flow matching; logit-normal times (arXiv 2403.03206) moved towards noise, where layout is decided."""
    s = torch.sigmoid(0.6 + 1.2 * torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)))
    x = torch.lerp(latents, noise, s.view(-1, 1, 1, 1))
    ids = tokens(pipe.tokenizer, texts, latents.device)
    first, second = (e(ids, output_hidden_states=True) for e in (pipe.text_encoder, pipe.text_encoder_2))
    text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    third = pipe.text_encoder_3(tokens(pipe.tokenizer_3, texts, latents.device))[0]
    text = torch.cat([text, third], 1)
    pooled = torch.cat([first.text_embeds, second.text_embeds], -1)
    velocity = pipe.transformer(
        hidden_states=x,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=s * 1000,
        return_dict=False,
    )[0]
    return F.mse_loss(velocity, noise - latents)


KINDS: dict[str, tuple[Callable, Callable]] = {
    "mini-unet": (blank_unet, unet_loss),
    "mini-flow": (blank_flow, flow_loss),
}


def pretrain_text(kind: str, pipe: Any, folder: Path, *, steps: int, seed: int) -> None:
    """Teaches the text encoders of ``pipe`` the language, and freezes them."""
    if kind == "mini-unet":
        encoders = [(pipe.text_encoder, pipe.tokenizer, -1)]
    else:
        encoders = [(pipe.text_encoder, pipe.tokenizer, -2), (pipe.text_encoder_2, pipe.tokenizer_2, -2),
                    (pipe.text_encoder_3, pipe.tokenizer_3, -1)]  # fmt: skip
    for k, (encoder, words, layer) in enumerate(encoders):
        text_pretraining.train(encoder, words, folder / f"text{k}", layer=layer, steps=steps, seed=seed + k)
        encoder.requires_grad_(False).eval()


def encode_scenes(vae: Any, folder: Path, *, count: int, seed: int, device: str) -> Tensor:
    """Latents fp16 [count, 4, 16, 16] of scene ``i`` made from ``(seed, i)``; cached in ``folder``."""
    from safetensors.torch import load_file, save_file

    from promptloop.world.autoencoder import pixels

    file = folder / f"latents-{seed}-{count}.safetensors"
    if not file.exists():
        rows = []
        with torch.no_grad():
            for first in range(0, count, 128):
                images = pixels([scene_at(seed, i) for i in range(first, min(first + 128, count))]).to(device)
                rows.append(to_latents(vae, images).half().cpu())
        save_file({"latents": torch.cat(rows).contiguous()}, f"{file}.part")
        Path(f"{file}.part").replace(file)
    return load_file(file)["latents"]


def to_latents(vae: Any, images: Tensor) -> Tensor:
    mean = vae.encode(images).latent_dist.mean
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def scene_at(seed: int, index: int) -> Scene:
    return random_scene(random.Random(f"{seed}/scene/{index}"))


def train(
    kind: str,
    vae: Any,
    folder: Path,
    *,
    steps: int,
    curated_steps: int,
    text_steps: int,
    seed: int,
    scenes: int,
    lr: float = 2e-3,
    device: str = "cpu",
) -> None:
    """Trains ``kind`` ("mini-unet" or "mini-flow") on latents of ``vae`` and saves ``folder/pipeline``.

    First on captions as the web writes them; then twice, at half the rate, on curated ones
    (captions.describe).
    """
    torch.manual_seed(seed)
    pipe = KINDS[kind][0](vae)
    pipe.to(device)
    pretrain_text(kind, pipe, folder, steps=text_steps, seed=seed)
    latents = encode_scenes(vae, folder.parent, count=scenes, seed=seed, device=device)
    learn(kind, pipe, latents, folder, "", steps=steps, seed=seed, lr=lr)
    for name in CURATED:
        learn(kind, pipe, latents, folder / name, name, steps=curated_steps, seed=seed, lr=lr / 2)
    pipe.save_pretrained(folder / "pipeline")


def learn(
    kind: str, pipe: Any, latents: Tensor, folder: Path, name: str, *, steps: int, seed: int, lr: float
) -> None:
    """The schedule ``name``: averaged weights are left in ``pipe``, snapshots in ``folder/pipeline``."""
    loss, scenes = KINDS[kind][1], len(latents)
    known = [scene_at(seed, i) for i in range(scenes)]
    parts = {n: m for n, m in pipe.components.items() if isinstance(m, nn.Module) and n != "vae"}
    network = nn.ModuleDict(parts).train()
    held = torch.arange(scenes - 512, scenes)

    def batch_loss(rows: Tensor, rng: random.Random) -> Tensor:
        noise = torch.Generator().manual_seed(rng.getrandbits(60))
        x = latents[rows].float().to(pipe.device)
        texts = [caption(known[i], rng, curated=bool(name)) for i in rows.tolist()]
        # stratified times: one per slice of the schedule, so that every batch sees every noise level
        uniform = torch.randperm(len(rows), generator=noise) + torch.rand(len(rows), generator=noise)
        drawn = torch.randn(x.shape, generator=noise)
        return loss(pipe, x, texts, drawn.to(x.device), (uniform / len(rows)).to(x.device))

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"{seed}/{kind}/{name and f'{name}/'}{step}")
        return batch_loss(torch.tensor([rng.randrange(scenes - 512) for _ in range(BATCH)]), rng)

    def check(step: int) -> dict[str, float]:
        pipe.save_pretrained(folder / "pipeline")  # a usable snapshot, with averaged weights
        rng = random.Random(f"{seed}/{kind}/check")
        return {"held_out_loss": round(sum(batch_loss(held[i::4], rng).item() for i in range(4)) / 4, 5)}

    fit(network, loss_at, steps=steps, seed=seed, lr=lr, folder=folder, check=check, check_every=500)
    network.eval()

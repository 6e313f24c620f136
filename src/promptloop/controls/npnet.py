"""NPNet (Zhou et al., arXiv 2411.09502): from a starting noise and its prompt to a better noise.

golden = spectrum(noise) + (2 sigmoid(alpha) - 1) e + beta residual(noise + e), e the noise normalised and
modulated by the embedded prompt. The Swin is transformers' own. Weights: npnet_weights.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from diffusers.models.normalization import AdaGroupNorm
from torch import Tensor, nn
from transformers.models.swin.configuration_swin import SwinConfig
from transformers.models.swin.modeling_swin import SwinModel

CHANNELS = 4  # of a latent; two by two they make one square matrix
HEADS = 8  # of the attention over the singular vectors


@final
@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are the release's for SDXL at 1024 x 1024.

    side: of the square latent. text: numbers of an embedded prompt, its tokens times their width. image,
    patch, width, depths, heads, window: the Swin's, `image` the side that the latent is resized to. hidden,
    wide: of the layers that read singular vectors, and that write singular values.
    """

    side: int = 128
    text: int = 77 * 2048
    image: int = 224
    patch: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    hidden: int = 64
    wide: int = 1024

    def __post_init__(self) -> None:
        if self.side < 1 or 2 * self.side % HEADS:
            raise ValueError(f"side is {self.side}; give a multiple of {HEADS // 2}, a square latent's")
        if self.image != self.rows * self.patch * 2 ** (len(self.depths) - 1) or not self.rows:
            raise ValueError(
                f"image is {self.image}; give a multiple of {self.patch * 2 ** (len(self.depths) - 1)}"
            )

    @property
    def rows(self) -> int:
        """Side of the Swin's last map."""
        return self.image // (self.patch * 2 ** (len(self.depths) - 1))


@final
class Spectrum(nn.Module):
    """The noise with singular values of its own: U diag(s + ds) V, ds read from U, s and V.

    The latent's channels are laid out two by two, so that it is one square matrix. New, ds is 0.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size = 2 * shape.side
        self.mlp1 = nn.Sequential(nn.Linear(size, shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, size))
        self.mlp2 = nn.Sequential(nn.Linear(size, shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, size))
        self.mlp3 = nn.Sequential(nn.Linear(size, size))
        self.attention = Attention(size)
        last = nn.Linear(shape.wide, size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp4 = nn.Sequential(nn.Linear(size, shape.wide), nn.ReLU(), last)

    def forward(self, noise: Tensor) -> Tensor:
        batch, _, side, _ = noise.shape
        square = noise.reshape(batch, 2, 2, side, side).transpose(2, 3).reshape(batch, 2 * side, 2 * side)
        u, s, v = torch.linalg.svd(square)
        told = self.mlp1(u.mT) + self.mlp2(v) + self.mlp3(s)[:, None]
        made = (u * (s + self.mlp4(self.attention(told).mean(1)))[:, None]) @ v
        return made.view(batch, 2, side, 2, side).transpose(2, 3).reshape(noise.shape)


@final
class Attention(nn.Module):
    """Self-attention with 8 heads, the queries, keys and values without a bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@final
class Residual(nn.Module):
    """A Swin transformer between two nearest-neighbour resizes.

    As in the release the rows of its last map stand as channels: [B, rows, rows, width] is resized in its
    last two axes, and a 1 x 1 convolution makes the latent's channels of the rows.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.downconv = nn.Conv2d(CHANNELS, 3, 1)
        config = SwinConfig(
            image_size=shape.image,
            patch_size=shape.patch,
            num_channels=3,
            embed_dim=shape.width,
            depths=list(shape.depths),
            num_heads=list(shape.heads),
            window_size=shape.window,
            drop_path_rate=0.0,
        )
        self.swin = SwinModel(config, add_pooling_layer=False)
        self.upconv = nn.Conv2d(shape.rows, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.swin(self.downconv(F.interpolate(x, [self.shape.image] * 2))).last_hidden_state
        rows = seen.unflatten(1, (self.shape.rows, self.shape.rows))
        return self.upconv(F.interpolate(rows, [self.shape.side] * 2))


@final
class NPNet(nn.Module):
    """Noise [B, C, h, w] and embedded prompts [B, ...] to golden noise of the same shape, float32.

    New, it gives the noise back. ValueError for a latent or a prompt of another size than it was made for.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.spectrum, self.residual = Spectrum(shape), Residual(shape)
        self.text = AdaGroupNorm(shape.text, CHANNELS, 1, eps=1e-6)
        self.alpha, self.beta = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, noise: Tensor, text: Tensor) -> Tensor:
        shape, size = self.shape, (CHANNELS, self.shape.side, self.shape.side)
        if noise.shape[1:] != size or text[0].numel() != shape.text:
            raise ValueError(
                f"this NPNet is for latents {size} and prompts of {shape.text} numbers; the backbone has "
                f"{tuple(noise.shape[1:])} and {text[0].numel()}: give the backbone, the size and the prompt "
                "length that it was trained for"
            )
        x, said = noise.to(self.alpha), text.to(self.alpha).flatten(1)
        e = self.text(x, said)
        made = self.spectrum(x) + (2 * self.alpha.sigmoid() - 1) * e + self.beta * self.residual(x + e)
        return made.to(noise)

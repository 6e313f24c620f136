"""Requests as a policy that sees images tells them apart: their pictures, and which of them are equal."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from promptloop.policies.contract import Request
from promptloop.policies.message import percent


def by_picture(requests: Sequence[Request]) -> list[list[int]]:
    """Row numbers of the requests without an estimate and of those with one, empty groups left out."""
    groups: tuple[list[int], list[int]] = ([], [])
    for i, request in enumerate(requests):
        groups[request.estimate is not None].append(i)
    return [group for group in groups if group]


def picture(request: Request) -> Image.Image:
    """The estimate as an 8-bit picture."""
    assert request.estimate is not None
    pixels = (request.estimate.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def identity(request: Request) -> tuple[Any, ...]:
    """Equal for requests that the policy cannot tell apart."""
    shown = None if request.estimate is None else picture(request)
    pixels = None if shown is None else (shown.size, shown.tobytes())
    return request.query, request.prompt, percent(request), pixels


def data_url(request: Request) -> str:
    """The estimate's picture as a data URL."""
    return url_of(picture(request))


def url_of(shown: Image.Image) -> str:
    """A picture as a data URL (PNG, which loses nothing)."""
    file = io.BytesIO()
    shown.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

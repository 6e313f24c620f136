"""What a request to the reward server may hold."""

import base64
import io
import json

import pytest
from PIL import Image

from promptloop.rewards import wire


def test_room_is_held_for_what_is_unpacked() -> None:
    """Fails when a small PNG of many pixels counts as its file, or a body of empty lists is parsed."""
    file = io.BytesIO()
    Image.new("RGB", (512, 512)).save(file, "PNG")
    body = {"reward": "light", "prompts": ["a"], "images": [base64.b64encode(file.getvalue()).decode()]}
    held: list[int] = []
    largest = wire.Largest(2**24, 1024, 8, 100)
    found = wire.asked(json.dumps(body).encode(), largest, held.append)
    assert found.images.shape == (1, 3, 512, 512)
    assert held[0] >= found.images.nbytes > 100 * len(file.getvalue())
    with pytest.raises(wire.Unfit, match="more lists"):
        wire.asked(b"[" + b"[]," * 2**18 + b"[]]", largest)

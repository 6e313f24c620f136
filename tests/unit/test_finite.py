"""An image that is not finite stops the run instead of being drawn black."""

from __future__ import annotations

import pytest
import tiny
import torch

from promptloop.denoisers import from_pipeline
from promptloop.sample import sample


@pytest.mark.parametrize(("part", "what"), [("unet", "latent"), ("vae", "image")])
def test_what_is_not_finite_names_its_sample(part: str, what: str) -> None:
    """Fails if nan latents become a black picture."""
    pipe = tiny.sd()
    with torch.no_grad():
        next(
            iter(pipe.components[part].decoder.parameters() if part == "vae" else pipe.unet.parameters())
        ).fill_(float("nan"))
    with pytest.raises(ValueError, match=f"the {what} of sample 0 is not finite .*LoRA.*float16"):
        sample(from_pipeline(pipe), ["a ring", "a box"], seeds=[0, 1], steps=2, max_batch=1)

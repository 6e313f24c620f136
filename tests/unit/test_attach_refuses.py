"""What `attach` does not reach, or cannot honour, is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import tiny_more
import torch
from diffusers import FluxPipeline, PixArtSigmaPipeline, QwenImagePipeline, StableDiffusionImg2ImgPipeline

from promptloop import attach
from promptloop.denoisers import FAMILIES
from promptloop.denoisers.z_image import ZImage
from promptloop.policies import Identity, Table


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (FluxPipeline, "does not reach the pooled text embedding"),
        (QwenImagePipeline, "does not reach the prompt's mask"),
        (PixArtSigmaPipeline, "it has no callback_on_step_end"),
        (StableDiffusionImg2ImgPipeline, "only StableDiffusionPipeline, "),
    ],
)
def test_other_pipelines_are_refused_in_one_sentence(kind: type, why: str) -> None:
    pipe = kind.__new__(kind)  # its name decides, before any part is looked at
    with pytest.raises(ValueError, match=f"cannot be attached to a {kind.__name__}: .*{why}") as error:
        attach(pipe, Identity())
    way = "sample(promptloop.from_pipeline(pipe)" if kind.__name__ in FAMILIES else "know it yet"
    assert way in str(error.value)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"prompt_embeds": torch.zeros(1, 2, 2)}, "prompt_embeds cannot be given to an attached pipeline: "),
        ({"num_inference_step": 4}, "no option 'num_inference_step'; did you mean 'num_inference_steps'"),
        ({"seeds": [1, 2]}, "2 seeds for 1 images"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
        ({"seeds": [-1]}, "give whole numbers from 0"),
        ({"num_inference_steps": 3}, "5 refinements do not fit"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"negative_prompt": ["a", "b"]}, "2 texts as negative_prompt for 1 prompts"),
        ({"prompt": []}, "give a text or a list of texts"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options: dict[str, Any], wanted: str) -> None:
    loop = attach(tiny.sd(), Identity())
    with pytest.raises(ValueError, match=wanted):
        loop(**{"prompt": "a dot", "num_inference_steps": 8} | options)


def test_options_in_a_row_are_refused() -> None:
    """Fails if Python counts the arguments instead of naming them."""
    with pytest.raises(TypeError, match=r"by name \(height=, width=\)"):
        attach(tiny.sd(), Identity())("a dot", 64, 64)


def test_a_name_is_no_policy_and_its_settings_are_checked() -> None:
    pipe = tiny.sd3()
    with pytest.raises(ValueError, match="load it first"):
        attach(pipe, "mini-policy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window is"):
        attach(pipe, Table(), window=(0.5, 0.2))
    with pytest.raises(ValueError, match="no callback reaches the prompt of the skipped layers"):
        attach(pipe, Table())("a dot", skip_guidance_layers=[0])


SMALL: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "seeds": [2]}


@pytest.mark.parametrize(
    ("make", "longest", "room", "more"),
    [
        (tiny.sd3, 40, 38, {}),  # T5's end mark and the blank that it puts before a text
        (tiny.sd3, 400, 398, {}),
        (tiny_more.z_image, 600, None, {"guidance_scale": 0.0, "height": 64, "width": 64}),
    ],
)
def test_drafts_may_be_as_long_as_the_user_says(
    make: Callable[[], Any], longest: int, room: int | None, more: dict[str, Any]
) -> None:
    """Fails if a draft is refused by what the pipeline reads unless told otherwise."""
    pipe: Any = make()
    pipe.set_progress_bar_config(disable=True)
    room = room or longest - ZImage(pipe).template_length
    for length in (room, room + 1):
        loop = attach(pipe, Table({"a dot": "x" * length}), refinements=1)
        drafts = loop("a dot", max_sequence_length=longest, **SMALL, **more).drafts
        assert [draft.kept for draft in drafts[0]] == [None if length == room else "overlong"]
    short = attach(pipe, Table({"a dot": "x" * 300}), refinements=1)("a dot", **SMALL, **more)
    assert [draft.kept for draft in short.drafts[0]] == ["overlong" if make is tiny.sd3 else None]

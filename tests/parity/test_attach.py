"""An attached pipeline makes the images and drafts that our own loop makes, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import tiny
import tiny_more
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback
from torch import Tensor

from promptloop import CFG, PromptLoop, attach, from_pipeline
from promptloop.policies import Draft, Identity, Policy, Request
from promptloop.sample import sample

FAMILIES: dict[str, Callable[[], Any]] = {
    "sd1": tiny.sd,
    "sd2-zero-snr": lambda: tiny.sd("v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    "sdxl": tiny.sdxl,
    "sdxl-velocity": lambda: tiny.sdxl("v_prediction", zeros=False, statistics=True),
    "sd3": tiny.sd3,
    "sd3-without-t5": lambda: tiny.sd3(t5=0),
    "sd3-dynamic-shift": lambda: tiny.sd3(sample=16, use_dynamic_shifting=True, shift=1.0),
    "z-image": tiny_more.z_image,
}
SIDE = {"ZImagePipeline": 64}  # pixels; the others' networks know their size
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
PROMPTS = ["a red circle", "two blue stars", ""]
SEEDS = [3, 4, 5]
STEPS = 5
MODES: dict[str, tuple[float, str | None]] = {
    "plain": (1.0, None),
    "cfg": (5.0, None),
    "negative": (5.0, "x"),
}
PLACES = ("upper left", "upper right", "lower left", "lower right")


@dataclass(frozen=True)
class Seeing(Policy):
    """Says where the estimate is brightest and a number drawn from its seed; remembers what it was asked."""

    asked: list[Request] = field(default_factory=list)
    image_size: int | None = 8

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        self.asked.extend(requests)
        return [Draft(r, f"{where(r.estimate)} {seed % 97}") for r, seed in zip(requests, seeds, strict=True)]

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class Failing(Seeing):
    """Cannot answer when it sees something."""

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        if requests[0].estimate is not None:
            raise ValueError("no answer")
        return super().write(requests, seeds)


def where(estimate: Tensor | None) -> str:
    if estimate is None:
        return "nowhere"
    quarters = torch.nn.functional.adaptive_avg_pool2d(estimate.mean(0, keepdim=True), 2)
    return PLACES[int(quarters.flatten().argmax())]


def made(name: str) -> Any:
    pipe = FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def texts(drafts: Any) -> list[list[str]]:
    return [[draft.text for draft in row] for row in drafts]


def seen_by_us(pipe: Any) -> Any:
    return from_pipeline(pipe, size=SIDE.get(type(pipe).__name__))


def both(pipe: Any, mode: str, how: Literal["closed", "open"] = "closed") -> Any:
    """Images, drafts and what the policy saw are those of our loop."""
    (scale, negative), said, seen = MODES[mode], Seeing(), Seeing()
    controls = [PromptLoop(said, 3, (0.0, 1.0), loop=how), CFG(scale, negative)]
    ours = sample(seen_by_us(pipe), PROMPTS, seeds=SEEDS, steps=STEPS, controls=controls)
    loop = attach(pipe, seen, refinements=3, loop=how)
    options = tiny_more.call_options(pipe, scale, negative, len(PROMPTS))
    result = loop(PROMPTS, seeds=SEEDS, num_inference_steps=STEPS, output_type="pt", **options)
    assert texts(result.drafts) == texts(ours.state.memory["drafts"])
    assert [r.progress for r in seen.asked] == [r.progress for r in said.asked]
    for mine, theirs in zip(seen.asked, said.asked, strict=True):
        assert (mine.query, mine.prompt) == (theirs.query, theirs.prompt)
        assert mine.estimate is theirs.estimate or (mine.estimate - theirs.estimate).abs().max() < 1e-4
    assert ours.images is not None and ours.images.std() > 0.05
    assert (result.images - ours.images).abs().max() < 1e-4  # found: 2e-6
    return result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "z-image"])
def test_attached_equals_our_loop(name: str, mode: str) -> None:
    """Fails if the estimate is without guidance, a new prompt replaces the negative half, or a pooled
    embedding stays the old prompt's.
    """
    pipe, guided = made(name), [CFG(*MODES[mode])]
    result = both(pipe, mode)
    for prompts in (PROMPTS, [row[0].text for row in result.drafts]):  # not the first drafts alone matter
        other = sample(seen_by_us(pipe), prompts, seeds=SEEDS, steps=STEPS, controls=guided).images
        assert other is not None and (other - result.images).abs().max() > 0.01


@pytest.mark.parametrize("name", ["sd2-zero-snr", "sdxl-velocity", "sd3-without-t5", "sd3-dynamic-shift"])
def test_every_parameterisation(name: str) -> None:
    """Fails if a velocity is read as noise, or the levels forget the shift."""
    assert both(made(name), "cfg").images.std() > 0.05


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("sd1", PNDMScheduler, {"skip_prk_steps": True}),
        ("sd1", DPMSolverMultistepScheduler, {}),
        ("sdxl", DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
        ("sd3", FlowMatchHeunDiscreteScheduler, {"shift": 3.0}),
        ("sd3", UniPCMultistepScheduler, FLOW),
    ],
)
def test_other_schedulers(name: str, kind: type, changes: dict[str, Any]) -> None:
    """Fails if the estimate is taken from the step after, or a level that is visited twice counts once."""
    pipe = made(name)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **changes)
    assert both(pipe, "cfg").images.std() > 0.05


def test_open_loop() -> None:
    drafts = both(made("sd1"), "cfg", "open").drafts
    assert all(draft.request.estimate is None for row in drafts for draft in row)


CALL: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "pt"}


def plain(pipe: Any, **options: Any) -> Tensor:
    return pipe(**CALL | {"generator": torch.Generator().manual_seed(2)} | options).images


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_a_policy_that_repeats_the_prompt_changes_nothing(name: str) -> None:
    """Bitwise, several images of a prompt among it. Fails if the loop draws from torch's generator, or images
    of several prompts come in another order.
    """
    pipe = made(name)
    loop = attach(pipe, Identity())
    options: dict[str, Any] = {"prompt": ["a dot", "two"], "num_images_per_prompt": 2, "generator": None}
    torch.manual_seed(7)
    expected = plain(pipe, negative_prompt=["x", "y"], **options)
    before, there = set(vars(pipe.scheduler)), set(vars(pipe))
    torch.manual_seed(7)
    again = loop(**CALL | options, negative_prompt=["x", "y"])
    assert torch.equal(again.images, expected) and len(again.drafts) == 4
    assert [[draft.kept for draft in row] for row in again.drafts] == [["same"] * 5] * 4
    assert set(vars(pipe.scheduler)) == before and set(vars(pipe)) == there
    assert "step" not in vars(pipe.scheduler)
    single = loop("a dot", **CALL, generator=torch.Generator().manual_seed(2), return_dict=False)[0]
    assert torch.equal(single, plain(pipe, prompt="a dot"))
    assert torch.equal(attach(pipe, Seeing(), refinements=0)("a dot", seeds=[2], **CALL).images, single)


def test_each_image_of_a_prompt_is_its_own_sample() -> None:
    """Fails if the images of one prompt share their drafts, or a single generator's seed is used twice."""
    pipe = made("sd1")
    loop = attach(pipe, Seeing(), refinements=2)
    several = loop(
        ["a dot", "two"], num_images_per_prompt=2, seeds=[8, 9, 10, 11], negative_prompt="x", **CALL
    )
    alone = [
        loop(prompt, seeds=[seed], negative_prompt="x", **CALL)
        for prompt, seed in zip(["a dot", "a dot", "two", "two"], [8, 9, 10, 11], strict=True)
    ]
    assert texts(several.drafts) == [texts(one.drafts)[0] for one in alone]
    assert (several.images - torch.cat([one.images for one in alone])).abs().max() < 1e-4
    first = texts(
        loop("a dot", num_images_per_prompt=2, generator=torch.Generator().manual_seed(8), **CALL).drafts
    )
    assert [row[0] for row in first] == [row[0] for row in texts(several.drafts)[:2]] and first[0] != first[1]


@pytest.mark.parametrize(
    ("name", "reading"), [("sdxl", {"clip_skip": 1}), ("sd3", {"max_sequence_length": 40, "clip_skip": 1})]
)
def test_later_prompts_are_read_as_the_first(name: str, reading: dict[str, int]) -> None:
    """Against the official callback by hand. Fails if a refined prompt is read without the user's clip_skip
    or with another length of T5.
    """
    pipe = made(name)
    loop = attach(pipe, Later(), refinements=2)
    images = loop("a dot", seeds=[2], guidance_scale=1.0, **reading, **CALL).images
    more = {"prompt_2": None, "prompt_3": None} if name == "sd3" else {}
    told = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    read = pipe.encode_prompt("two stars", **more, **told, **reading)

    def swap(pipe: Any, step: int, t: Any, reached: dict[str, Any]) -> dict[str, Any]:
        pooled = "pooled_prompt_embeds" if name == "sd3" else "add_text_embeds"
        return {"prompt_embeds": read[0], pooled: read[2]} if step == 1 else {}

    expected = plain(pipe, prompt="a dot", guidance_scale=1.0, callback_on_step_end=swap, **reading)
    assert (images - expected).abs().max() < 1e-5
    assert (images - loop("a dot", seeds=[2], guidance_scale=1.0, **CALL).images).abs().max() > 1e-3


@dataclass(frozen=True)
class Later(Seeing):
    """Keeps the first prompt, and says the same as soon as it sees something."""

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        return [Draft(r, r.prompt if r.estimate is None else "two stars") for r in requests]


def test_another_size_of_picture_has_other_levels() -> None:
    """What the policy sees is the clean latent between two steps of the pipeline's own. Fails if the levels
    are those of the network's size.
    """
    pipe, policy, seen = made("sd3-dynamic-shift"), Seeing(image_size=None), []

    def keep(pipe: Any, step: int, t: Any, reached: dict[str, Any]) -> dict[str, Any]:
        seen.append(reached["latents"])
        return reached

    attach(pipe, policy, refinements=2)(
        "a dot", seeds=[2], height=16, width=48, callback_on_step_end=keep, **CALL
    )
    start, end = pipe.scheduler.sigmas[1:3].tolist()
    clean = seen[0] - start * (seen[1] - seen[0]) / (end - start)
    shown = policy.asked[1].estimate
    assert shown is not None and shown.shape == (3, 16, 48)
    assert (shown - from_pipeline(pipe).decode(clean)[0]).abs().max() < 1e-4


def test_the_users_own_callback_is_kept() -> None:
    """Fails if it is not called, gets tensors that it did not ask for, or what it returns is lost."""
    pipe, asked = made("sd1"), []

    def halve(pipe: Any, step: int, t: Any, reached: dict[str, Any]) -> dict[str, Any]:
        asked.append((step, sorted(reached)))
        return {"latents": 0.5 * reached["latents"]}

    expected = plain(pipe, prompt="a dot", callback_on_step_end=halve)
    loop = attach(pipe, Identity())
    options: dict[str, Any] = {"callback_on_step_end": halve} | CALL
    assert torch.equal(loop("a dot", seeds=[2], **options).images, expected)
    assert asked == [(step, ["latents"]) for step in range(STEPS)] * 2
    read = pipe.encode_prompt("two stars", torch.device("cpu"), 1, False)[0]

    def both_change(pipe: Any, step: int, t: Any, reached: dict[str, Any]) -> dict[str, Any]:
        return halve(pipe, step, t, reached) | ({"prompt_embeds": read} if step == 1 else {})

    expected = plain(pipe, prompt="a dot", guidance_scale=1.0, callback_on_step_end=both_change)
    later = attach(pipe, Later(), refinements=2)("a dot", seeds=[2], guidance_scale=1.0, **options)
    assert (later.images - expected).abs().max() < 1e-5
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    expected = plain(pipe, prompt="a dot", callback_on_step_end=cutoff)
    assert torch.equal(loop("a dot", seeds=[2], callback_on_step_end=cutoff, **CALL).images, expected)
    seeing = attach(pipe, Seeing(), refinements=4)  # guidance ends half way: one half of the texts is left
    assert len(seeing("a dot", seeds=[2], callback_on_step_end=cutoff, **CALL).drafts[0]) == 4
    with pytest.raises(ValueError, match="returned a NoneType; return its callback_kwargs"):
        loop("a dot", seeds=[2], callback_on_step_end=lambda *_: None, **CALL)


def test_a_failure_leaves_the_pipeline_as_it_was() -> None:
    pipe = made("sd1")
    expected = plain(pipe, prompt="a dot")
    with pytest.raises(ValueError, match="no answer"):
        attach(pipe, Failing(), refinements=2)("a dot", seeds=[2], **CALL)
    assert "step" not in vars(pipe.scheduler) and torch.equal(plain(pipe, prompt="a dot"), expected)


def test_half_precision_stays_half() -> None:
    """SDXL's decoder is raised to float32 for an estimate and lowered again: the pipeline's own decoding
    would fail. Fails without same_precision.
    """
    pipe = made("sdxl").to(torch.float16)
    assert pipe.vae.config.force_upcast
    result = attach(pipe, Seeing(), refinements=3)("a dot", seeds=[2], **CALL)
    assert pipe.vae.dtype == torch.float16 and result.images.isfinite().all()
    assert [draft.request.estimate is None for draft in result.drafts[0]] == [True, False, False]

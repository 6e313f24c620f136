"""Our loop makes the image that the diffusers pipeline makes, from the same seeds.

Pipelines are tiny and random but of the real classes, written to disk and loaded twice: by diffusers as the
reference, and by `load`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_more
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from pipelines import (
    FAMILIES,
    FLOW,
    MODES,
    OWN,
    PROMPTS,
    SEEDS,
    VP,
    assert_same,
    loaded,
    ours,
    reference,
    theirs,
)

from promptloop.sample import State, default_solver, sample
from promptloop.solvers import LCM, Euler, Scheduler

Folders = Callable[[str], Path]
Pairs = Callable[[str], tuple[Any, Any]]

WRAPPED: list[tuple[str, type, dict[str, Any]]] = [
    ("sd1", DPMSolverMultistepScheduler, {}),
    ("sd1", EulerDiscreteScheduler, {}),
    ("sd1", PNDMScheduler, {"skip_prk_steps": True}),
    ("sd2", DPMSolverMultistepScheduler, {}),
    ("sd2", EulerDiscreteScheduler, {}),
    ("sdxl", DDIMScheduler, VP),
    ("sdxl", DPMSolverMultistepScheduler, {}),
    ("sdxl-velocity", DDIMScheduler, VP),
    ("sd3", FlowMatchHeunDiscreteScheduler, {"shift": 3.0}),
    ("sd3", UniPCMultistepScheduler, FLOW),
    ("sd3", DPMSolverMultistepScheduler, FLOW),
    ("sd3-dynamic-shift", UniPCMultistepScheduler, FLOW),
    ("flux-dev", UniPCMultistepScheduler, FLOW),
    ("flux-dev", DPMSolverMultistepScheduler, FLOW),
    ("flux-schnell", FlowMatchEulerDiscreteScheduler, {"use_exponential_sigmas": True}),
    ("pixart", EulerDiscreteScheduler, {}),
    ("pixart", UniPCMultistepScheduler, {}),
    ("z-image", FlowMatchEulerDiscreteScheduler, {"use_karras_sigmas": True}),
    ("z-image", FlowMatchEulerDiscreteScheduler, {"use_dynamic_shifting": True}),
    ("qwen-image", FlowMatchEulerDiscreteScheduler, {"use_karras_sigmas": True}),
    ("qwen-image", UniPCMultistepScheduler, FLOW),
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """name -> the folder of that family, written on first use."""
    root, made = tmp_path_factory.mktemp("pipelines"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tiny.saved(FAMILIES[name](), root / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def pairs(folders: Folders) -> Pairs:
    """name -> that family as diffusers has it and as we have it, loaded once, with their own schedulers."""
    made: dict[str, tuple[Any, Any, Any]] = {}

    def pair(name: str) -> tuple[Any, Any]:
        if name not in made:
            pipe = reference(folders(name))
            made[name] = (pipe, loaded(folders(name)), pipe.scheduler)
        pipe, denoiser, scheduler = made[name]
        for side in (pipe, denoiser.pipe):
            side.scheduler = type(scheduler).from_config(scheduler.config)
        return pipe, denoiser

    return pair


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "pixart"])
def test_own_solver_equals_pipeline(pairs: Pairs, name: str, mode: str) -> None:
    """Batch of three, our own DDIM or Euler. Fails if decode forgets the autoencoder's shift_factor."""
    pipe, denoiser = pairs(name)
    assert_same(ours(denoiser, mode, OWN.get(name, Euler())), theirs(pipe, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "kind", "changes"), WRAPPED, ids=lambda v: getattr(v, "__name__", None))
def test_wrapped_scheduler_equals_pipeline(
    pairs: Pairs, name: str, kind: type, changes: dict[str, Any], mode: str
) -> None:
    """The same diffusers scheduler in their loop and in ours, told what the pipeline tells it.

    Fails if v is fed back to it as noise, or mu or the sigmas are not handed on.
    """
    pipe, denoiser = pairs(name)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **changes)
    denoiser.pipe.scheduler = kind.from_config(denoiser.scheduler.config, **changes)
    solver = Scheduler(denoiser.scheduler, denoiser.scheduler_options)
    assert_same(ours(denoiser, mode, solver), theirs(pipe, mode))


@pytest.mark.parametrize("name", FAMILIES)
def test_default_solver_is_the_pipelines(pairs: Pairs, name: str) -> None:
    """Without a solver given. Fails if default_solver takes DDIM(eta=1) for a DDIM scheduler."""
    pipe, denoiser = pairs(name)
    assert_same(ours(denoiser, "cfg"), theirs(pipe, "cfg"))


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (EulerAncestralDiscreteScheduler, 1),  # Turbo
        (EulerAncestralDiscreteScheduler, 4),
        (EulerDiscreteScheduler, 2),  # Lightning
        (EulerDiscreteScheduler, 4),
    ],
)
def test_few_step_sdxl_equals_pipeline(pairs: Pairs, kind: type, steps: int) -> None:
    """Trailing steps without guidance; the ancestral noise of the pipeline is drawn from our seeds.

    Fails if the last step adds noise, the first level is not the noisiest, or rows share their noise.
    """
    pipe, denoiser = pairs("sdxl")
    pipe.scheduler = denoiser.pipe.scheduler = kind.from_config(
        pipe.scheduler.config, timestep_spacing="trailing"
    )
    states: list[State] = []
    mine = sample(denoiser, PROMPTS, steps=steps, seeds=SEEDS, on_step=states.append).images
    assert mine is not None
    generators = [torch.Generator() for _ in SEEDS]

    def seeded(*said: Any) -> dict[str, Any]:
        """Before each step, the generators as our loop has them; said ends in (step, t, tensors)."""
        state = states[min(said[1] + 1, steps)]
        for i, generator in enumerate(generators):
            generator.manual_seed(state.generator(i, "step").initial_seed())
        return {}

    seeded(pipe, -1)
    told: dict[str, Any] = {"guidance_scale": 0.0, "num_inference_steps": steps, "generator": generators}
    told |= {"latents": denoiser.noise(SEEDS), "callback_on_step_end": seeded}
    assert_same(mine, theirs(pipe, "plain", **told))


def test_a_consistency_model_is_sampled_as_its_pipeline_does(pairs: Pairs) -> None:
    """One step to the pixel; in three steps each draw is the pipeline's own, given its noise.

    Fails if an LCM scheduler is wrapped as a deterministic one, or its boundary or its levels are others.
    """
    pipe, denoiser = pairs("sd1")
    scheduler = LCMScheduler.from_config(
        pipe.scheduler.config, original_inference_steps=10, clip_sample=False
    )
    pipe.scheduler = denoiser.pipe.scheduler = scheduler
    assert default_solver(denoiser) == LCM()
    one = sample(denoiser, PROMPTS, steps=1, seeds=SEEDS).images
    assert one is not None
    assert_same(one, theirs(pipe, "plain", num_inference_steps=1))
    states: list[State] = []
    sample(denoiser, PROMPTS, steps=3, seeds=SEEDS, on_step=states.append)
    timed = LCMScheduler.from_config(scheduler.config)
    timed.set_timesteps(3)
    for before, after, t in zip(states, states[1:], timed.timesteps, strict=False):
        text = denoiser.embed(PROMPTS).fields["text"]
        said = denoiser.network(before.x, t, text, return_dict=False)[0]
        expected = timed.step(said, t, before.x, generator=torch.Generator().manual_seed(0))
        assert after.transition is not None
        assert torch.allclose(after.transition.clean, expected.denoised, atol=1e-3, rtol=1e-4)
    assert states[-1].transition is not None and states[-1].transition.std == 0


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_short_t5_equals_pipeline_told_so(tmp_path: Path, name: str) -> None:
    """T5's model_max_length of 12 is max_sequence_length=12 there. Fails if embed leaves it longer."""
    builder = {"sd3": tiny.sd3, "flux-dev": tiny_more.flux}[name]
    folder = tiny.saved(builder(t5=12), tmp_path / name)
    assert_same(ours(loaded(folder), "plain"), theirs(reference(folder), "plain", max_sequence_length=12))


def lora(network: torch.nn.Module) -> torch.nn.Module:
    """The network in peft's wrapping, with a loud random LoRA whose scale alpha / r is not 1."""
    settings = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v", "to_out.0"])
    tuned = get_peft_model(network, settings)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_" in name:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return tuned


def save_as_diffusers(pipe: Any, tuned: Any, part: str, folder: Path) -> None:
    """As diffusers' training scripts do: pytorch_lora_weights.safetensors with the settings inside."""
    weights = get_peft_model_state_dict(tuned)
    layers = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
    settings = tuned.peft_config["default"].to_dict()
    options = {f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": settings}
    pipe.save_lora_weights(folder, **options)


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
@pytest.mark.parametrize("name", ["sd1", "sd3", "flux-dev", "z-image"])
def test_lora_equals_pipeline(folders: Folders, tmp_path: Path, name: str, layout: str) -> None:
    """LoRA from either layout against weights merged by peft. Fails if lora_alpha is lost on the way."""
    pipe = reference(folders(name))
    part = "unet" if name == "sd1" else "transformer"
    plain = theirs(pipe, "cfg")
    tuned: Any = lora(getattr(pipe, part))
    if layout == "peft":
        tuned.save_pretrained(tmp_path)
    else:
        save_as_diffusers(pipe, tuned, part, tmp_path)
    pipe.register_modules(**{part: tuned.merge_and_unload()})
    expected = theirs(pipe, "cfg")
    assert (expected - plain).abs().max() > 0.05
    assert_same(ours(loaded(folders(name), lora=tmp_path), "cfg"), expected)

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
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from promptloop.controls.guidance import CFG
from promptloop.denoisers import load
from promptloop.sample import State, default_solver, sample
from promptloop.solvers import DDIM, LCM, Euler, Scheduler, Solver

Folders = Callable[[str], Path]

TOLERANCE = 1e-4  # images in [0, 1], float32; found: 6e-6
STEPS = 5  # a divisor of 1,000: with trailing steps, DDIMScheduler misses its own next level otherwise
PROMPTS = ["a red circle", "two blue stars left of a ring", ""]
SEEDS = [3, 4, 5]

ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd1": tiny.sd,
    "sd2": lambda: tiny.sd("v_prediction"),
    "sd2-zero-snr": lambda: tiny.sd("v_prediction", **ZERO_SNR),
    "sdxl": tiny.sdxl,
    "sdxl-velocity": lambda: tiny.sdxl("v_prediction", zeros=False, statistics=True),
    "sd3": tiny.sd3,
    "sd3-without-t5": lambda: tiny.sd3(t5=0),
    "sd3-dynamic-shift": lambda: tiny.sd3(sample=16, use_dynamic_shifting=True, shift=1.0),
}
OWN = {"sd1": DDIM(), "sd2": DDIM(), "sd2-zero-snr": DDIM()}  # the rest: Euler()
WRAPPED: list[tuple[str, type, dict[str, Any]]] = [
    ("sd1", DPMSolverMultistepScheduler, {}),
    ("sd1", EulerDiscreteScheduler, {}),
    ("sd1", PNDMScheduler, {"skip_prk_steps": True}),
    ("sd2", DPMSolverMultistepScheduler, {}),
    ("sd2", EulerDiscreteScheduler, {}),
    ("sdxl", DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    ("sdxl", DPMSolverMultistepScheduler, {}),
    ("sdxl-velocity", DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    ("sd3", FlowMatchHeunDiscreteScheduler, {"shift": 3.0}),
    ("sd3", UniPCMultistepScheduler, FLOW),
    ("sd3", DPMSolverMultistepScheduler, FLOW),
]
MODES = {"plain": (1.0, None), "cfg": (5.0, None), "negative": (5.0, "blurry")}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """name -> the folder of that family, written on first use."""
    root, made = tmp_path_factory.mktemp("pipelines"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tiny.saved(FAMILIES[name](), root / name)
        return made[name]

    return folder


def reference(folder: Path) -> Any:
    """The folder as diffusers loads it."""
    absent = {"text_encoder_3": None, "tokenizer_3": None} if "without-t5" in folder.name else {}
    pipe = DiffusionPipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, mode: str, **options: Any) -> torch.Tensor:
    scale, negative = MODES[mode]
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    options = {"output_type": "pt", "generator": generators, "num_inference_steps": STEPS} | options
    negatives = None if negative is None else [negative] * len(PROMPTS)
    return pipe(PROMPTS, guidance_scale=scale, negative_prompt=negatives, **options).images


def ours(denoiser: Any, mode: str, solver: Solver | None = None) -> torch.Tensor:
    scale, negative = MODES[mode]
    controls = [] if mode == "plain" else [CFG(scale, negative)]
    run = sample(denoiser, PROMPTS, steps=STEPS, seeds=SEEDS, solver=solver, controls=controls)
    assert run.images is not None
    return run.images


def assert_same(mine: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to TOLERANCE, on pictures that have something to compare."""
    assert expected.std() > 0.05 and ((expected > 0) & (expected < 1)).float().mean() > 0.9
    assert (expected[0] - expected[1]).abs().max() > 0.05
    assert (mine - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_own_solver_equals_pipeline(folders: Folders, name: str, mode: str) -> None:
    """Batch of three, our own DDIM or Euler. Fails if decode forgets the autoencoder's shift_factor."""
    solver = OWN.get(name, Euler())
    assert_same(ours(load(folders(name)), mode, solver), theirs(reference(folders(name)), mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "kind", "changes"), WRAPPED, ids=lambda v: getattr(v, "__name__", None))
def test_wrapped_scheduler_equals_pipeline(
    folders: Folders, name: str, kind: type, changes: dict[str, Any], mode: str
) -> None:
    """The same diffusers scheduler in their loop and in ours. Fails if v is fed back to it as noise."""
    pipe, denoiser = reference(folders(name)), load(folders(name))
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **changes)
    solver = Scheduler(kind.from_config(denoiser.scheduler.config, **changes))
    assert_same(ours(denoiser, mode, solver), theirs(pipe, mode))


def test_wrapped_scheduler_with_dynamic_shift(folders: Folders) -> None:
    """The denoiser knows what its pipeline tells a scheduler. Fails if the options are not handed on."""
    pipe, denoiser = reference(folders("sd3-dynamic-shift")), load(folders("sd3-dynamic-shift"))
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, **FLOW)
    options = denoiser.scheduler_options  # type: ignore[attr-defined]
    solver = Scheduler(UniPCMultistepScheduler.from_config(denoiser.scheduler.config, **FLOW), options)
    assert_same(ours(denoiser, "cfg", solver), theirs(pipe, "cfg"))


@pytest.mark.parametrize("name", FAMILIES)
def test_default_solver_is_the_pipelines(folders: Folders, name: str) -> None:
    """Without a solver given. Fails if default_solver takes DDIM(eta=1) for a DDIM scheduler."""
    assert_same(ours(load(folders(name)), "cfg"), theirs(reference(folders(name)), "cfg"))


def test_a_consistency_model_is_sampled_as_its_pipeline_does(folders: Folders) -> None:
    """One step to the pixel; in three steps each draw is the pipeline's own, given its noise.

    Fails if an LCM scheduler is wrapped as a deterministic one, or its boundary or its levels are others.
    """
    pipe, denoiser = reference(folders("sd1")), load(folders("sd1"))
    scheduler = LCMScheduler.from_config(
        pipe.scheduler.config, original_inference_steps=10, clip_sample=False
    )
    pipe.scheduler = denoiser.pipe.scheduler = scheduler  # type: ignore[attr-defined]
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


def test_short_t5_equals_pipeline_told_so(tmp_path: Path) -> None:
    """T5's model_max_length of 12 is max_sequence_length=12 there. Fails if embed leaves it at 256."""
    folder = tiny.saved(tiny.sd3(t5=12), tmp_path)
    assert_same(ours(load(folder), "plain"), theirs(reference(folder), "plain", max_sequence_length=12))


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


def save_as_diffusers(tuned: Any, part: str, folder: Path) -> None:
    """As diffusers' training scripts do: pytorch_lora_weights.safetensors with the settings inside."""
    weights = get_peft_model_state_dict(tuned)
    layers = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
    kind = StableDiffusionPipeline if part == "unet" else StableDiffusion3Pipeline
    settings = tuned.peft_config["default"].to_dict()
    options = {f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": settings}
    kind.save_lora_weights(folder, **options)


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_lora_equals_pipeline(folders: Folders, tmp_path: Path, name: str, layout: str) -> None:
    """LoRA from either layout against weights merged by peft. Fails if lora_alpha is lost on the way."""
    pipe = reference(folders(name))
    part = "unet" if name == "sd1" else "transformer"
    plain = theirs(pipe, "cfg")
    tuned: Any = lora(getattr(pipe, part))
    if layout == "peft":
        tuned.save_pretrained(tmp_path)
    else:
        save_as_diffusers(tuned, part, tmp_path)
    pipe.register_modules(**{part: tuned.merge_and_unload()})
    expected = theirs(pipe, "cfg")
    assert (expected - plain).abs().max() > 0.05
    assert_same(ours(load(folders(name), lora=tmp_path), "cfg"), expected)

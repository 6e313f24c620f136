"""Guides on real classes, tiny and random: bitwise ends, LoRAs switched, float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_loras
import torch

from promptloop.controls.doob import DOIT
from promptloop.controls.gradients import Ascent, LossGuidance, NoisyRewardGradient, RewardGradient
from promptloop.controls.guidance import CFG, PromptGuidance
from promptloop.controls.prompt import PromptLoop, Scheduled
from promptloop.controls.record import Record
from promptloop.controls.recurrence import Recurrence
from promptloop.controls.tuned import RLG, Blend
from promptloop.denoisers import from_pipeline, load
from promptloop.policies.fixed import Identity
from promptloop.sample import default_solver, rescore, sample, trajectory
from promptloop.solvers import DDIM, FlowSDE

PROMPTS, SEEDS = ["a red circle", "two blue stars"], [3, 4]
FAMILIES: dict[str, Callable[[], Any]] = {"sd": tiny.sd, "sd3": lambda: tiny.sd3(t5=0)}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """family -> a folder with its pipeline in "base" and two LoRAs, "one" and "two"; "other" is tuned."""
    root, done = tmp_path_factory.mktemp("guides"), set[str]()

    def folder(name: str) -> Path:
        if name not in done:
            done.add(name)
            pipe = FAMILIES[name]()
            tiny.saved(pipe, root / name / "base")
            tiny_loras.write(pipe, root / name / "one", "peft", seed=1)
            tiny_loras.write(pipe, root / name / "two", "peft", seed=2, rank=3)
            texts = ("text_encoder",)
            tiny_loras.write(pipe, root / name / "texts", "diffusers", seed=3, texts=texts)
            network = getattr(pipe, "unet", None) or pipe.transformer
            with torch.no_grad():
                for value in network.parameters():
                    value.mul_(1.05)
            tiny.saved(pipe, root / name / "other")
        return root / name

    return folder


def ours(denoiser: Any, *controls: Any, **options: Any) -> torch.Tensor:
    images = sample(denoiser, PROMPTS, seeds=SEEDS, controls=controls, **{"steps": 3} | options).images
    assert images is not None and images.dtype == torch.float32 and bool(images.isfinite().all())
    return images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rlg_switches_a_lora_on_the_same_network(name: str, dtype: torch.dtype, made: Made) -> None:
    """The ends are bitwise the backbone without and with its LoRA; others stay in force; all is put back.

    Fails when the base branch leaves the LoRA on, or the tuned one turns the other LoRA off.
    """
    root = made(name)
    denoiser = load(root / "base", dtype=dtype, lora={str(root / "one"): 0.7, str(root / "two"): 0.4})
    before = denoiser.lora_weights  # type: ignore[attr-defined]
    loop, cfg = PromptLoop(Identity(), refinements=2), CFG(4.0)
    with denoiser.loras(two=0.4):  # type: ignore[attr-defined]
        base = ours(denoiser, cfg)
    tuned = ours(denoiser, cfg)
    assert float((base - tuned).abs().max()) > 1e-3
    assert torch.equal(ours(denoiser, loop, cfg, RLG("one", 0)), base)
    assert torch.equal(ours(denoiser, loop, cfg, RLG("one", 1)), tuned)
    assert torch.equal(ours(denoiser, cfg, RLG({"one": 0.7}, 1)), tuned)
    beyond = ours(denoiser, loop, cfg, RLG("one", 1.6))
    assert float((beyond - tuned).abs().max()) > 1e-4
    assert torch.equal(ours(denoiser, cfg, Blend(["one"], [1.0], 1.6)), beyond)
    for steps in ("all", "draw"):
        blended = ours(denoiser, cfg, Blend(["one", {"two": 1.0}], [0.5, 0.5], 1.0, steps))  # type: ignore
        assert float((blended - tuned).abs().max()) > 1e-4
    with pytest.raises(ValueError, match="'three'"):
        ours(denoiser, RLG("three", 1.6))
    assert denoiser.lora_weights == before  # type: ignore[attr-defined]


def test_a_lora_of_a_text_encoder_is_refused(made: Made) -> None:
    """Fails when the base branch silently reads embeddings that the LoRA made."""
    root = made("sd")
    with pytest.raises(ValueError, match="'texts' reaches a text encoder"):
        ours(load(root / "base", lora=str(root / "texts")), RLG("texts", 1.6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rlg_with_a_second_denoiser(name: str, dtype: torch.dtype, made: Made) -> None:
    """Also scored again after a stochastic run. Fails when the second branch is not the tuned network's."""
    base, other = (load(made(name) / which, dtype=dtype) for which in ("base", "other"))
    cfg = CFG(4.0)
    assert torch.equal(ours(base, cfg, RLG(other, 0)), ours(base, cfg))
    assert torch.equal(ours(base, cfg, RLG(other, 1)), ours(other, cfg))
    assert float((ours(base, cfg, RLG(other, 1.6)) - ours(other, cfg)).abs().max()) > 1e-4
    solver = DDIM(1.0) if name == "sd" else FlowSDE()
    controls = [cfg, RLG(other, [1.0, 1.6, 1.3]), Record()]
    state = sample(base, PROMPTS, seeds=SEEDS, steps=3, solver=solver, controls=controls).state
    with torch.no_grad():
        again = rescore(base, state)
    assert torch.allclose(again, state.memory["path_log_prob"], atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_guidance_and_a_window(name: str, dtype: torch.dtype, made: Made) -> None:
    """Fails when the query's branch reads the prompt in force, or the window is that of the first step."""
    denoiser, loud = load(made(name) / "base", dtype=dtype), Scheduled({0: "a large yellow ring"})
    cfg = CFG(4.0, window=(0.3, 0.7))
    plain, moved = ours(denoiser, cfg), ours(denoiser, loud, cfg)
    assert torch.equal(ours(denoiser, loud, cfg, PromptGuidance(0)), plain)
    assert torch.equal(ours(denoiser, loud, cfg, PromptGuidance(1)), moved)
    assert float((ours(denoiser, loud, cfg, PromptGuidance(1.8)) - moved).abs().max()) > 1e-4
    assert not torch.equal(plain, ours(denoiser)) and not torch.equal(plain, ours(denoiser, CFG(4.0)))


# --- guides by gradients


def middle(images: torch.Tensor, queries: Any) -> torch.Tensor:
    """Bright in the middle; differentiable."""
    return images[:, :, 4:-4, 4:-4].mean((1, 2, 3)) - images.mean((1, 2, 3))


middle.differentiable = True  # type: ignore[attr-defined]


def noisy(x: torch.Tensor, level: Any, queries: Any) -> torch.Tensor:
    """The first channel of the latents."""
    return x[:, 0].mean((1, 2))


noisy.differentiable = True  # type: ignore[attr-defined]

GUIDES = {
    "reward": RewardGradient(middle, 30.0, limit=0.3),
    "frozen": RewardGradient(middle, 30.0, through="noise", limit=0.3, at_once=1),
    "relative": RewardGradient(middle, 0.1, relative=True, twice=True),
    "loss": LossGuidance(middle, 30.0, samples=2, at_once=1),
    "ascent": Ascent(middle, 30.0, steps=2),
}
NETWORKS: dict[str, Callable[[], Any]] = {
    "epsilon": tiny.sd,
    "v": lambda: tiny.sd("v_prediction"),
    "sample": lambda: tiny.sd("sample"),
    "velocity": lambda: tiny.sd3(t5=0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_guide_goes_up_the_reward_whatever_the_network_predicts(name: str, dtype: torch.dtype) -> None:
    """At one state the guided estimate has the higher reward, and at scale 0 it is bitwise the plain one; a
    whole run ends with a higher one. Fails with the sign of the velocity's increment on the clean estimate.
    """
    denoiser = from_pipeline(NETWORKS[name]().to(dtype))
    for part in denoiser.modules:
        part.requires_grad_(False)
    cfg, levels = CFG(3.0), denoiser.levels(4)
    before, plain = None, []
    for state in trajectory(denoiser, PROMPTS, levels=levels, solver=default_solver(denoiser), seeds=SEEDS,
                            controls=[cfg]):  # fmt: skip
        before = state if state.step == 2 else before
        plain.append(state)
    assert before is not None
    start = middle(denoiser.decode(plain[-1].x.detach()), PROMPTS)
    for kind, guide in GUIDES.items():
        denoise = cfg.guide(denoiser.clean, before)
        with torch.no_grad():
            base = denoise(before.x, before.level, before.cond)
            moved = guide.guide(denoise, before)(before.x, before.level, before.cond)
            gained = middle(denoiser.decode(moved), PROMPTS) - middle(denoiser.decode(base), PROMPTS)
        assert moved.dtype == torch.float32 and not moved.requires_grad
        end = middle(ours(denoiser, cfg, guide, steps=4), PROMPTS)
        if name == "sample" and kind not in ("frozen", "ascent"):
            continue  # x moves a random network's image whichever way; noise and velocity leave x in it
        assert bool((gained > 0).all()), (kind, gained)
        assert bool((end > start).all()), (kind, end, start)
    ours(denoiser, cfg, NoisyRewardGradient(noisy, 1.0), steps=4)
    ours(denoiser, cfg, DOIT(middle, samples=2, window=(0.3, 1.0)), steps=4)
    solver = FlowSDE() if name == "velocity" else DDIM(1.0)
    ours(denoiser, cfg, RewardGradient(middle, 10.0, form="mean", limit=0.3), steps=4, solver=solver)
    ours(denoiser, cfg, GUIDES["reward"], steps=2, solver=solver, turn=Recurrence(2))


def test_a_guide_by_gradients_goes_through_rlg(made: Made) -> None:
    """A LoRA that is switched while a graph is made: as the same two networks held apart.

    Fails when the backward pass of one branch reads the other's weights.
    """
    root = made("sd")
    one = load(root / "base", lora=str(root / "one"))
    apart = load(root / "base"), load(root / "base", lora=str(root / "one"))
    guide = RewardGradient(middle, 30.0, limit=0.3)
    wanted = ours(apart[0], CFG(3.0), RLG(apart[1], 1.6), guide)
    assert float((ours(one, CFG(3.0), RLG("one", 1.6), guide) - wanted).abs().max()) < 1e-5
    assert float((ours(one, CFG(3.0), RLG("one", 1.6)) - wanted).abs().max()) > 1e-4

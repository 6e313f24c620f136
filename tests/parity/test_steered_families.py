"""Every method of the table on SDXL's and FLUX's real classes, tiny and random, in float32 and bfloat16.

SD and SD3 have tests of their own, method by method (test_guides, test_particles, test_searches, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_loras
import tiny_more
import torch
from runs.test_methods import GIVEN, TUNED

from promptloop.controls.guidance import CFG
from promptloop.controls.matching import LogH
from promptloop.denoisers import load
from promptloop.recipes.methods import METHODS, OWN, is_driver
from promptloop.recipes.steering import steering
from promptloop.sample import sample

FAMILIES: dict[str, tuple[Callable[[], Any], str, int | None]] = {  # a solver that draws, pixels
    "sdxl": (tiny.sdxl, "ddim:eta=1", None),
    "flux": (tiny_more.flux, "flow-sde", 64),
}
PROMPTS, SEEDS = ["a red circle"], [3]
NAMES = {  # of the embedded models' settings -> of these
    **dict.fromkeys(("oracle", "preference"), "parity.test_guides:middle"),
    "noisy_reward:noisy": "parity.test_guides:noisy",
    "noisy_reward:Dark": "promptloop.policies:Identity",
    "noisy_reward:early": "parity.test_steered_families:early",
    "NPNET": "parity.test_steered_families:other",
    TUNED: "one",
}
SAME = (
    "best-of",
    "fk",
    "svdd",
    "prompt-guidance",
    "negative-prompt",
    "scheduled",
    "ttsnap",
)  # may keep the first


def early(images: torch.Tensor, queries: Any, level: Any) -> torch.Tensor:
    return level.share * images.mean((1, 2, 3))


def other(noise: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Another noise, which the prompt has a part in."""
    return noise.flip(-1) + 0.01 * text.float().mean()


@pytest.fixture(scope="module", params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, int | None]:
    build, solver, size = FAMILIES[request.param]
    where, pipe = tmp_path_factory.mktemp(request.param), build()
    tiny.saved(pipe, where / "base")
    tiny_loras.write(pipe, where / "one", "diffusers", seed=1)
    return where, solver, size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_method_runs(folder: tuple[Path, str, int | None], dtype: torch.dtype) -> None:
    """Images of the plain run's shape, finite, float32 latents, and others than the plain run's.

    Fails when a method computes in the network's dtype, or meets a cond that it cannot take apart.
    """
    where, draws, size = folder
    denoiser = load(where / "base", lora=str(where / "one"), dtype=dtype, size=size)
    with denoiser.loras():
        options: dict[str, Any] = {"seeds": SEEDS, "steps": 3}
        plain = {
            "": sample(denoiser, PROMPTS, controls=[CFG(2.0)], **options),
            draws: sample(
                denoiser,
                PROMPTS,
                controls=[CFG(2.0)],
                solver=steering([], draws, denoiser, "cpu").solver,
                **options,
            ),
        }
        for name, method in METHODS.items():
            if method.given == OWN:
                continue
            settings, solver = GIVEN[name][0], draws if "solver" in method.needs else ""
            for old, new in NAMES.items():
                settings = settings.replace(f"={old}", f"={new}")
            if settings == "h=":
                LogH(denoiser.latent_shape).save(where / "h")
                settings += str(where / "h")
            made = steering([f"{name}:{settings}"], solver, denoiser, "cpu")
            controls = made.controls if made.guides else (CFG(2.0), *made.controls)
            run = made.sample(denoiser, PROMPTS, controls=controls, **options)
            base = plain[solver]
            assert run.images is not None and base.images is not None
            assert run.images.shape == base.images.shape and bool(run.images.isfinite().all()), name
            assert run.state.x.dtype == torch.float32, name
            if name not in SAME and not is_driver(name):
                assert not torch.equal(run.state.x, base.state.x), name

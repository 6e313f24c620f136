"""load and from_pipeline, and what a denoiser over a pipeline promises besides parity."""

from __future__ import annotations

import json
import logging
import math
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_more
import torch
from diffusers import DDPMPipeline
from safetensors.torch import save_file

from promptloop import schedules
from promptloop.denoisers import FAMILIES, Denoiser, from_pipeline, load
from promptloop.parameters import LoRA, lora_on, reference, save_lora
from promptloop.schedules import Level

NOISY = Level(0.6, 0.8, 500.0)


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tiny.sd(), tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module", params=[tiny.sd, tiny.sd3])
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    return from_pipeline(request.param())


# --- loading


def test_importing_the_table_imports_no_diffusers() -> None:
    """Fails if denoisers/__init__.py imports sd.py's or folders.py's diffusers at the top."""
    code = "import sys, promptloop.denoisers; assert not {'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_folder_loads_without_network(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if load asks the hub about a folder: every connection raises here."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    loaded = load(str(sd_folder))
    assert type(loaded).__name__ == "SD"
    assert not any(value.requires_grad for value in loaded.network.parameters())
    assert not loaded.network.training


def test_loads_in_another_dtype(sd_folder: Path) -> None:
    """bfloat16 in the network, float32 outside of it. Fails if decode drops its .float()."""
    loaded = load(sd_folder, dtype=torch.bfloat16)
    assert next(loaded.network.parameters()).dtype == torch.bfloat16
    clean = loaded.clean(loaded.noise([1]), NOISY, loaded.embed(["a ring"]))
    assert clean.dtype == loaded.decode(clean).dtype == torch.float32
    precise = load(sd_folder)
    expected = precise.clean(precise.noise([1]), NOISY, precise.embed(["a ring"]))
    assert (clean - expected).abs().max() < 0.1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no such/folder", "does not exist"),
        ("./nowhere", "does not exist"),
        ("nobody/nothing", "neither a folder here nor a diffusers pipeline"),
    ],
)
def test_path_that_leads_nowhere(path: str, said: str) -> None:
    """Offline, one sentence each. Fails if the OSError of the hub client comes through."""
    with pytest.raises(ValueError, match=said) as caught:
        load(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_folders(tmp_path: Path) -> None:
    """A file, and a folder without model_index.json."""
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        load(tmp_path)
    file = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="is a file"):
        load(file)


def test_unsupported_family_names_the_supported(tmp_path: Path) -> None:
    """Fails if the message leaves out the table."""
    index = {"_class_name": "KandinskyPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"KandinskyPipeline is not a supported pipeline") as caught:
        load(tmp_path)
    assert all(name in str(caught.value) for name in FAMILIES)
    with pytest.raises(ValueError, match="supported: StableDiffusionPipeline"):
        from_pipeline(DDPMPipeline(tiny.sd().unet, tiny.sd().scheduler))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """Fails if load drops use_safetensors=True."""
    tiny.saved(tiny.sd(), tmp_path)
    for file in (tmp_path / "unet").glob("*.safetensors"):
        file.unlink()
    tiny.sd().unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    with pytest.raises(ValueError, match="cannot be loaded: .*safetensors"):
        load(tmp_path)


def test_lora_that_does_not_fit(sd_folder: Path, tmp_path: Path) -> None:
    """None of these may load in silence. Fails if add_lora does not count the LoRA weights it got."""
    with pytest.raises(ValueError, match="does not exist"):
        load(sd_folder, lora=tmp_path / "none")
    with pytest.raises(ValueError, match="found: none"):
        load(sd_folder, lora=tmp_path)
    weights = {f"transformer.block.to_q.lora_{k}.weight": torch.zeros(2, 2) for k in "AB"}
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="another backbone"):
        load(sd_folder, lora=tmp_path)
    save_file({"unet.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        load(sd_folder, lora=tmp_path / "other.safetensors")


# --- latents, text, images


def test_noise_is_the_pipelines(denoiser: Any) -> None:
    """Row i from its seed alone, as diffusers draws it. Fails if one generator is shared by the rows."""
    noise = denoiser.noise([7, 8])
    channels, height, width = denoiser.latent_shape
    factor = denoiser.pipe.vae_scale_factor
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    expected = denoiser.pipe.prepare_latents(
        2, channels, height * factor, width * factor, torch.float32, denoiser.device, generators)  # fmt: skip
    assert torch.equal(noise, expected)
    assert torch.equal(noise[1:], denoiser.noise([8]))


def test_decode(denoiser: Denoiser) -> None:
    """Images in [0, 1] of any size, with a gradient. Fails if decode runs without one, or does not clamp."""
    x = denoiser.noise([1, 2]).requires_grad_()
    full, small = denoiser.decode(x), denoiser.decode(x, size=6)
    assert full.shape == (2, 3, 16, 16) and small.shape == (2, 3, 6, 6)
    assert (small.mean((2, 3)) - full.mean((2, 3))).abs().max() < 0.05
    small.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    loud = denoiser.decode(100 * x)
    assert loud.min() >= 0 and loud.max() <= 1


def test_tokens_are_counted_as_the_encoder_reads_them(denoiser: Denoiser) -> None:
    """The last token within the limit is read, one more is not. Fails if the limit is one off."""
    between = " " if denoiser.text_limit == 22 else ""  # the next letter leaves the tokens before it alone

    def embedded(length: int) -> torch.Tensor:
        return denoiser.embed([between.join("a" * length)]).fields["text"]

    length = 22 if between else 254  # T5 begins every word with a mark of its own
    assert denoiser.count_tokens("") == 0
    assert denoiser.count_tokens(between.join("a" * length)) == denoiser.text_limit
    assert not torch.equal(embedded(length - 1), embedded(length))
    assert torch.equal(embedded(length), embedded(length + 1))


def test_gradient_reaches_the_network(denoiser: Denoiser) -> None:
    """Fails if clean runs under no_grad."""
    denoiser.network.requires_grad_(True)
    denoiser.clean(denoiser.noise([1]), NOISY, denoiser.embed(["a"])).sum().backward()
    assert all(value.grad is not None for value in list(denoiser.network.parameters())[:3])


# --- the clean estimate


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_sd_levels_of_any_scale(prediction: str) -> None:
    """3 x at (3 alpha, 3 sigma) has the estimate of x at (alpha, sigma). Fails if x is fed unscaled."""
    sd = from_pipeline(tiny.sd(prediction))
    x, cond = sd.noise([1, 2]), sd.embed(["a", "b"])
    scaled = sd.clean(3 * x, Level(3 * NOISY.alpha, 3 * NOISY.sigma, NOISY.t), cond)
    torch.testing.assert_close(scaled, sd.clean(x, NOISY, cond), rtol=1e-5, atol=1e-5)


def test_sd3_levels_of_any_scale() -> None:
    """The same for the flow network, whose own levels have alpha + sigma = 1. Fails without `scale`."""
    sd3 = from_pipeline(tiny.sd3())
    x, cond = sd3.noise([1, 2]), sd3.embed(["a", "b"])
    scaled = sd3.clean(2 * x, Level(0.8, 1.2, 600.0), cond)
    torch.testing.assert_close(scaled, sd3.clean(x, Level(0.4, 0.6, 600.0), cond), rtol=1e-5, atol=1e-5)


def test_v_prediction_formula() -> None:
    """The network's v is alpha noise - sigma clean. Fails if the signs of alpha and sigma are exchanged."""
    sd = from_pipeline(tiny.sd("v_prediction"))
    x, cond = sd.noise([1]), sd.embed(["a"])
    clean = sd.clean(x, NOISY, cond)
    noise = (x - NOISY.alpha * clean) / NOISY.sigma
    v = sd.network(x, torch.tensor([NOISY.t]), cond.fields["text"]).sample
    torch.testing.assert_close(NOISY.alpha * noise - NOISY.sigma * clean, v, rtol=1e-4, atol=1e-5)


def test_pure_noise_has_no_estimate_for_a_noise_network() -> None:
    """alpha = 0: an error for epsilon, finite for v. Fails if epsilon divides by zero in silence."""
    level = Level(0.0, 1.0, 999.0)
    sd = from_pipeline(tiny.sd())
    with pytest.raises(ValueError, match="pure noise"):
        sd.clean(sd.noise([1]), level, sd.embed(["a"]))
    sd = from_pipeline(tiny.sd("v_prediction"))
    assert sd.clean(sd.noise([1]), level, sd.embed(["a"])).isfinite().all()


def test_sd_refuses_what_it_cannot_feed() -> None:
    """An unknown prediction type, and a UNet distilled on the guidance scale."""
    pipe = tiny.sd()
    pipe.scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="'score'; known: epsilon"):
        from_pipeline(pipe)
    pipe = tiny.sd()
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="time_cond_proj_dim"):
        from_pipeline(pipe)


# --- levels


def test_dynamic_shifting_follows_the_latent_size() -> None:
    """sigma' = e^mu / (e^mu + 1/sigma - 1), mu linear in the image tokens. Fails if mu is left out."""
    options = {"use_dynamic_shifting": True, "shift": 1.0}
    small, large = (from_pipeline(tiny.sd3(sample=size, **options)) for size in (8, 64))
    mu = 0.5 + (1.15 - 0.5) * (32 * 32 - 256) / (4096 - 256)
    even = 1 - 0.999 * 2 / 3
    assert large.levels(4)[2].sigma == pytest.approx(1 / (1 + math.exp(-mu) * (1 / even - 1)), abs=1e-6)
    assert small.levels(4)[2].sigma < large.levels(4)[2].sigma


def test_t5_length() -> None:
    """256 zeros stand for an absent T5, as in the pipeline; a short T5 reads what its tokenizer says."""
    for t5, length in {0: 256, 12: 12, 512: 256}.items():
        assert from_pipeline(tiny.sd3(t5=t5)).embed(["a"]).fields["text"].shape[1] == 24 + length


def test_schedules_fit_the_network(sd_folder: Path) -> None:
    """The backbone's levels are schedules.vp's of the same curve. Fails if the curve is not squared."""
    levels = load(sd_folder).levels(5)
    for mine, theirs in zip(schedules.vp(5, spacing="leading")[:-1], levels[:-1], strict=True):
        assert mine.t == theirs.t and mine.alpha == pytest.approx(theirs.alpha, abs=1e-5)


def test_a_cut_prompt_is_named_and_the_libraries_are_quiet(
    denoiser: Denoiser, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the warning is lost, or if diffusers' own (with all the padding in it) comes through."""
    long = "a b c d e f g h " * 20
    for library in ("diffusers", "transformers"):  # they do not propagate to the root logger
        monkeypatch.setattr(logging.getLogger(library), "propagate", True)
    with pytest.warns(UserWarning, match=r"the text encoder reads \d+ of the \d+ tokens of 'a b c"):
        denoiser.embed(["a", long])
    assert not caplog.records
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoiser.embed(["a"])


@pytest.mark.parametrize("family", [tiny.sd, tiny.sd3, tiny_more.pixart])
def test_a_trained_lora_comes_back(family: Any, tmp_path: Path) -> None:
    """Loaded again, the network answers the same; off, it is the base. Fails if alpha or a layer is lost."""
    folder = tiny.saved(family(), tmp_path / "base")
    one = load(folder)
    before = answer(one)
    lora_on(one, LoRA(4, 8), seed=0)
    assert torch.equal(answer(one), before)  # the second factor begins at 0
    for name, p in one.network.named_parameters():
        if "lora_B" in name:
            p.data.normal_(generator=torch.Generator().manual_seed(1))
    save_lora(one, tmp_path / "lora", base="base")
    again = load(folder, lora=tmp_path / "lora")
    assert not torch.allclose(answer(one), before, atol=1e-3)
    assert torch.allclose(answer(again), answer(one), atol=1e-6)
    with reference(one.network):
        assert torch.allclose(answer(one), before, atol=1e-6)


@torch.no_grad()
def answer(denoiser: Denoiser) -> torch.Tensor:
    return denoiser.clean(denoiser.noise([3]), NOISY, denoiser.embed(["a star"]))

"""What each newer family promises besides the parity of test_pipelines.py: the closed loop, batches, text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import pytest
import tiny
import tiny_more
import torch
from PIL import Image
from pipelines import FAMILIES, NEW, loaded

from promptloop.controls.guidance import CFG
from promptloop.controls.prompt import PromptLoop
from promptloop.denoisers import from_pipeline, load
from promptloop.denoisers.flow import packed, unpacked
from promptloop.denoisers.once import Once
from promptloop.policies.contract import Request
from promptloop.policies.fixed import Fixed, Table
from promptloop.recipes.usual import Usual, usual
from promptloop.sample import State, sample
from promptloop.schedules import Level

QUERIES = ["a red circle", "a star", "two blue rings"]
LONGER = {"a star": "a large yellow star left of two small red circles, striped background"}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module", params=NEW)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(FAMILIES[request.param](), tmp_path_factory.mktemp("new") / request.param)


@pytest.fixture(scope="module")
def denoiser(folder: Path) -> Any:
    return loaded(folder)


@final
class OnceSeen(Fixed):
    """Keeps the prompt until it is shown an image, then looks the query up."""

    def answer(self, request: Request, rng: random.Random) -> str:
        return request.prompt if request.estimate is None else LONGER.get(request.query, request.prompt)


# --- the closed loop


@torch.no_grad()
def test_a_closed_loop_in_a_batch_is_each_sample_alone(denoiser: Any) -> None:
    """Another prompt, of another length, from step 2 on; at every step the estimate of a row alone.

    Fails if padding as long as the batch's longest prompt is read (Z-Image, Qwen-Image; PixArt's length is
    fixed, so its mask is test_pipelines.py's to miss), pooled text stays behind, or rows change places.
    """
    states: list[State] = []
    controls = [PromptLoop(OnceSeen(), refinements=2, window=(0.4, 1.0)), CFG(3.0, "blurry")]
    options: dict[str, Any] = {"steps": 4, "controls": controls}
    images = sample(denoiser, QUERIES, seeds=[1, 2, 3], on_step=states.append, **options).images
    assert images is not None
    assert [state.prompts[1] for state in states] == ["a star"] * 3 + [LONGER["a star"]] * 2
    alone = sample(denoiser, QUERIES[1:2], seeds=[2], **options).images
    assert alone is not None and float((images[1] - alone[0]).abs().max()) < 1e-4
    without = denoiser.embed(["blurry"])
    for before, after in zip(states, states[1:], strict=False):
        x, level, said = before.x[1:2], before.level, denoiser.embed([after.prompts[1]])
        two = denoiser.clean(x, level, without), denoiser.clean(x, level, said)
        assert after.transition is not None
        expected = denoiser.guided(x, level, *two, 3.0)
        largest = max(1.0, float(expected.abs().max()))
        assert float((after.transition.clean[1:2] - expected).abs().max()) < 1e-4 * largest
    same = sample(denoiser, QUERIES[1:2], seeds=[2], steps=4, controls=controls[1:]).images
    assert same is not None and float((same[0] - alone[0]).abs().max()) > 0.01


def test_a_table_policy_is_the_prompt_it_says(denoiser: Any) -> None:
    """And equal rows are computed once. Fails if Once leaves out a field of the conditioning, or the norm."""
    asked, seeds = ["a star", "a star", "a star"], [7, 7, 8]
    looped = [PromptLoop(Table(LONGER), refinements=2), CFG(4.0)]
    made = sample(Once(denoiser), asked, seeds=seeds, steps=2, controls=looped).images
    plain = sample(denoiser, [LONGER["a star"]] * 3, seeds=seeds, steps=2, controls=[CFG(4.0)]).images
    assert made is not None and plain is not None
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert float((made - plain).abs().max()) < 1e-4


def test_generate_on_the_command_line(folder: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    """The folder as a user has it. Fails if it is guided where guidance is distilled, or --size is lost."""
    side = 64
    options = [
        "--backbone",
        str(folder),
        "--policy",
        "promptloop.policies:Identity",
        "--steps",
        "2",
        "--size",
        "64",
    ]
    code, out, err = command("generate", "a star", "-n", "1", "--out", str(tmp_path / "run"), *options)
    assert code == 0, err
    job = json.loads((tmp_path / "run" / "trace.json").read_text())["job"]
    assert job["guidance"] == USUAL[folder.name].guidance and job["refinements"] == 2
    with Image.open(tmp_path / "run" / "00.png") as image:
        assert image.size == (side, side)


# --- what it is sampled with

USUAL = {
    "flux-dev": Usual(steps=28, guidance=1.0),
    "flux-schnell": Usual(steps=4, training_steps=4, guidance=1.0),
    "pixart": Usual(steps=20, guidance=4.5),
    "z-image-turbo": Usual(steps=8, training_steps=8, guidance=1.0),
    "qwen-image": Usual(steps=50, guidance=4.0),
}


def test_the_folder_says_what_is_usual(folder: Path, denoiser: Any) -> None:
    """By its name and as an object. Fails if a distilled model is guided by 5 like an ordinary one."""
    assert usual(str(folder)) == usual(denoiser) == USUAL[folder.name]


def test_the_base_of_a_distilled_model_is_guided() -> None:
    """Fails if Z-Image is taken for its Turbo, or a FLUX with a shift but no guidance for schnell."""
    assert usual(from_pipeline(tiny_more.z_image(turbo=False))) == Usual(steps=50, guidance=5.0)
    pipe = tiny_more.flux(dev=False, use_dynamic_shifting=True)
    assert usual(from_pipeline(pipe)) == Usual(steps=28, guidance=3.5)


# --- settings


@torch.no_grad()
def test_flux_dev_is_told_its_guidance() -> None:
    """3.5 unless told; it changes the estimate. Fails if the scale is not handed on, or 0 is none."""
    pipe = tiny_more.flux()
    usually, strongly = from_pipeline(pipe, size=64), from_pipeline(pipe, size=64, embedded_guidance=7.0)
    assert (usually.embedded_guidance, strongly.embedded_guidance) == (3.5, 7.0)  # type: ignore[attr-defined]
    assert from_pipeline(pipe, embedded_guidance=0.0).embedded_guidance == 0.0  # type: ignore[attr-defined]
    x, cond, level = usually.noise([1]), usually.embed(["a star"]), usually.levels(4)[1]
    estimates = [d.clean(x, level, cond) for d in (usually, strongly, from_pipeline(pipe, size=64))]
    assert torch.equal(estimates[0], estimates[2]) and not torch.allclose(*estimates[:2], atol=1e-3)


def test_flux_is_told_on_the_command_line(tmp_path: Path, command: Callable[..., Any]) -> None:
    """Once told otherwise, once not: other images, a trace that replays; schnell refuses it in a sentence.

    Fails if the option does not reach the denoiser, or is lost from the trace.
    """
    dev, schnell = (tiny.saved(tiny_more.flux(d), tmp_path / f"dev-{d}") for d in (True, False))
    common = ["generate", "a star", "-n", "1", "--policy", "none", "--steps", "2", "--size", "64"]
    for name, told in (("usual", []), ("strong", ["--embedded-guidance", "7"])):
        out = ["--out", str(tmp_path / name)]
        code, _, err = command(*common, *out, "--backbone", str(dev), *told)
        assert code == 0, err
    traces = [json.loads((tmp_path / name / "trace.json").read_text()) for name in ("usual", "strong")]
    assert [trace["job"]["embedded_guidance"] for trace in traces] == [None, 7.0]
    assert len({trace["samples"][0]["image"]["sha256"] for trace in traces}) == 2
    code, said, _ = command("replay", str(tmp_path / "strong"))
    assert code == 0 and "the same: 1 images" in said
    refused = [*common, "--out", str(tmp_path / "no"), "--embedded-guidance"]
    for backbone, scale, why in (
        (schnell, "7", "FluxPipeline is not distilled on a guidance scale; use the control CFG(scale), on"),
        ("promptloop.denoisers:Denoiser", "7", "made by Python; set it there"),
        (dev, "-1", "embedded_guidance is -1.0; it must be a finite number from 0"),
    ):
        code, _, err = command(*refused, scale, "--backbone", str(backbone))
        assert code == 2 and why in err and err.count("\n") == 1, err


@pytest.mark.parametrize("builder", [tiny.sd, lambda: tiny_more.flux(False), tiny_more.qwen_image])
def test_others_are_told_none(builder: Callable[[], Any]) -> None:
    """Fails if the setting is taken in silence where the network has no input for it."""
    with pytest.raises(ValueError, match=r"embedded_guidance is 3\.5, but .* use the control CFG"):
        from_pipeline(builder(), embedded_guidance=3.5)


def test_size_is_a_multiple_of_a_token(folder: Path) -> None:
    """64 pixels, whatever the folder's own size. Fails if a size is rounded in silence."""
    made = load(folder, size=64)
    assert made.decode(made.noise([1])).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="size is 63; .* makes images of a multiple of"):
        load(folder, size=63)


def test_half_precision(folder: Path, denoiser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Close to float32, and float32 outside of the network. Fails if the text keeps another dtype."""
    half = loaded(folder, dtype=torch.bfloat16)
    assert next(half.network.parameters()).dtype == torch.bfloat16
    x, level = denoiser.noise([1, 2]), Level(0.6, 0.8, 500.0)  # a time bfloat16 can tell, and a guidance:
    for side in (half, denoiser):
        monkeypatch.setattr(side, "embedded_guidance", side.embedded_guidance and 4.0)
    with torch.no_grad():
        estimates = [d.clean(x, level, d.embed(["a star", LONGER["a star"]])) for d in (half, denoiser)]
        assert estimates[0].dtype == half.decode(estimates[0]).dtype == torch.float32
    assert float((estimates[0] - estimates[1]).abs().mean()) < 0.1 * float(estimates[1].abs().mean())


# --- text


def test_tokens_are_counted_as_the_encoder_reads_them(denoiser: Any) -> None:
    """The last token within the limit is read, one more is not. Fails if the limit is one off."""
    limit, start = denoiser.text_limit, denoiser.count_tokens("a") - 1
    assert denoiser.count_tokens("") == 0 and denoiser.count_tokens("a" * (limit - start)) == limit

    def read(count: int) -> Any:
        fields = denoiser.embed(["a" * (count - start)]).fields
        return int(fields["mask"].sum()) if "mask" in fields else fields["text"]

    one_less, all_of_it = read(limit - 1), read(limit)
    with pytest.warns(UserWarning, match=f"reads {limit} of the {limit + 1} tokens"):
        too_much = read(limit + 1)
    if isinstance(all_of_it, int):
        assert one_less + 1 == all_of_it == too_much
    else:
        assert torch.equal(all_of_it, too_much) and not torch.equal(one_less, all_of_it)


def test_packing_is_the_pipelines() -> None:
    """Fails if channels and places inside a square change their order."""
    pipe, x = tiny_more.flux(), torch.randn(2, 4, 6, 8)
    assert torch.equal(packed(x), pipe._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpacked(packed(x), 6, 8), x)


# --- the page


def test_every_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hub ids are tiny folders here, its sizes and steps small. Fails if a row has no example."""
    page = DOCS.read_text(encoding="utf-8").partition("\n## In your own pipeline\n")[0]
    published = ("FLUX.1-dev", "FLUX.1-schnell", "PixArt-Sigma", "Z-Image-Turbo", "Qwen-Image")
    older = {"sd1": "stable-diffusion-v1-5", "sdxl": "stable-diffusion-xl", "sd3": "stable-diffusion-3.5"}
    names = {**dict(zip(NEW, published, strict=True)), **older}
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r'load\("([\w.-]+/[\w.-]+)"', page)
    for name, part in names.items():
        (hub_id,) = {place for place in found if part in place}
        tiny.saved(FAMILIES[name](), tmp_path / hub_id)
    space: dict[str, Any] = {}
    for block in blocks:
        small = re.sub(r"steps=\d+", "steps=5", re.sub(r"size=\d+", "size=64", block))
        exec(compile(small, str(DOCS), "exec"), space)
        if "result" in space:
            assert tuple(space["result"].images.shape) == (1, 3, 64, 64)

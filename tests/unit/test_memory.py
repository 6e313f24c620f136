"""Offload's bookkeeping, a decoder in parts, half precision, out-of-memory errors that say what to lower."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import cpu_offload, cpu_offload_with_hook

from promptloop.controls.guidance import CFG
from promptloop.controls.prompt import PromptLoop
from promptloop.denoisers import Cond, from_pipeline, load
from promptloop.denoisers.memory import OutOfMemory, offload_of
from promptloop.denoisers.once import Once
from promptloop.policies.fixed import Identity
from promptloop.sample import Control, State, sample

PROMPTS, SEEDS, STEPS = ["a red circle", "two blue stars"], [3, 4], 3
FAMILIES: dict[str, Callable[[], Any]] = {"sd": tiny.sd, "sdxl": tiny.sdxl, "sd3": tiny.sd3}
CPU = torch.device("cpu")


def ours(denoiser: Any, **options: Any) -> torch.Tensor:
    run = {"steps": STEPS, "seeds": SEEDS, "controls": [CFG(4.0)], **options}
    images = sample(denoiser, PROMPTS, **run).images
    assert images is not None
    return images


def theirs(pipe: Any, **options: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    told = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "generator": generators} | options
    return pipe(PROMPTS, output_type="pt", **told).images


def modules(pipe: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def test_a_lean_run_keeps_no_embeddings() -> None:
    """Nothing that grows with the text is left of a batch; images and drafts are. Fails if the negative
    embeddings, which CFG keeps in memory, outlive their batch.
    """
    denoiser = from_pipeline(tiny.sd())
    options: dict[str, Any] = {"steps": STEPS, "seeds": SEEDS, "max_batch": 1,
                               "controls": [PromptLoop(Identity(), refinements=2), CFG(4.0)]}  # fmt: skip
    whole, lean = (sample(denoiser, PROMPTS, lean=on, **options) for on in (False, True))
    assert torch.equal(lean.images, whole.images)  # type: ignore[arg-type]
    assert whole.state.cond is not None and len(whole.state.memory) == len(lean.state.memory) + 1
    assert lean.state.cond is None and lean.state.transition is None and lean.state.embedded == ()
    held = [value for value in lean.state.memory.values() if isinstance(value, torch.Tensor)]
    assert not any(isinstance(value, Cond) for value in lean.state.memory.values()) and held
    assert sum(value.numel() for value in held) <= 2 * (STEPS + 1)  # a plan and a weight for each sample
    assert [len(drafts) for drafts in lean.state.memory["drafts"]] == [2, 2]


# --- offload


@pytest.mark.parametrize("family", FAMILIES)
def test_sequential_offload(family: str) -> None:
    """Every layer waits on the meta device and comes to the "accelerator" (here the CPU) for its forward.

    Fails if Denoiser.device is read off the weights (it would be "meta"), or a part is called past its hooks.
    """
    plain, pipe = from_pipeline(FAMILIES[family]()), FAMILIES[family]()
    for part in modules(pipe).values():
        cpu_offload(part, CPU, offload_buffers=len(part._parameters) > 0)  # as enable_sequential_cpu_offload
    denoiser: Any = from_pipeline(pipe)
    assert next(denoiser.network.parameters()).device.type == "meta"
    assert denoiser.device == CPU and offload_of(pipe, denoiser.network) == "sequential"
    assert torch.equal(ours(denoiser), ours(plain))


@pytest.mark.parametrize("family", FAMILIES)
def test_model_offload_has_one_part_there_at_a_time(family: str) -> None:
    """As enable_model_cpu_offload chains them; what is where is read off the hooks' calls.

    Fails if decode leaves its part behind, or a text encoder comes back while the network is still there.
    """
    plain, pipe = from_pipeline(FAMILIES[family]()), FAMILIES[family]()
    there: set[str] = set()
    most, hook, hooks = 0, None, []

    def watched(name: str, hook: Any, last: str) -> None:
        before, off = hook.hook.pre_forward, hook.hook.init_hook

        def come(module: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal most
            result = before(module, *args, **kwargs)
            there.discard(last)  # on a GPU accelerate lets the one before go here
            there.add(name)
            most = max(most, len(there))
            return result

        def go(module: Any) -> Any:
            there.discard(name)
            return off(module)

        hook.hook.pre_forward, hook.hook.init_hook = come, go

    last = ""
    for name in pipe.model_cpu_offload_seq.split("->"):
        if isinstance(part := pipe.components.get(name), torch.nn.Module):
            _, hook = cpu_offload_with_hook(part, CPU, prev_module_hook=hook)
            watched(name, hook, last)
            hooks.append(hook)
            last = name
    pipe._all_hooks = hooks
    denoiser: Any = from_pipeline(pipe)
    assert denoiser.device == CPU and offload_of(pipe, denoiser.network) == "model"
    controls = [PromptLoop(Identity(), refinements=2), Rename(), CFG(4.0)]
    assert torch.equal(ours(denoiser, controls=controls), ours(plain, controls=controls))
    assert most == 1 and not there


class Rename(Control):
    """A new prompt at every step: text encoders are wanted in the middle of the run."""

    def condition(self, state: State) -> State:
        return state.say([f"{query} {state.step}" for query in state.queries])


def test_offload_needs_a_gpu(tmp_path: Path) -> None:
    """Before anything is loaded (the folder is empty). Fails if the check comes after the weights."""
    with pytest.raises(ValueError, match="offload 'model' lets weights wait in main memory.*'cpu'"):
        load(tmp_path, offload="model")
    with pytest.raises(ValueError, match="choose one of none, model, sequential"):
        load(tmp_path, offload="disk")  # type: ignore[arg-type]


# --- a decoder in parts


@pytest.mark.parametrize("part", ["tiling", "slicing"])
def test_decoding_in_parts_equals_the_pipelines(tmp_path: Path, part: str) -> None:
    """Tiles of 4 of 8 latents. Fails if the switch is not passed on: tiles show their seams."""
    pipe = tiny.sd()
    pipe.register_modules(vae=tiny.autoencoder(8, scaling_factor=0.18215))
    tiny.saved(pipe, tmp_path)
    getattr(pipe.vae, f"enable_{part}")()
    whole, parts = load(tmp_path), load(tmp_path, **{part: True})  # type: ignore[arg-type]
    images = ours(parts)
    assert (images - theirs(pipe)).abs().max() <= 1e-4
    different = (images - ours(whole)).abs().max()
    assert different > 1e-3 if part == "tiling" else different <= 1e-5


def test_an_autoencoder_without_tiling_is_refused(tmp_path: Path) -> None:
    """Fails if it is not looked at: diffusers' NotImplementedError would come."""
    from diffusers import VQModel

    pipe = tiny.sd()
    pipe.vae = VQModel()
    from promptloop.denoisers.memory import decode_in_parts

    with pytest.raises(ValueError, match=r"\(VQModel\) has no tiling"):
        decode_in_parts(pipe, tiling=True, slicing=False)


# --- half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    """The network in `dtype`, latents float32 outside; at most as far from float32 as the pipeline is.

    The pipeline rounds its latents at every step, so the two differ by rounding: measured at most 0.022 in
    bfloat16 and 0.003 in float16 of images in [0, 1]. Fails if latents are rounded between steps.
    """
    pipe = FAMILIES[family]()
    exact = ours(from_pipeline(pipe))
    pipe.to(dtype)
    denoiser, seen = from_pipeline(pipe), list[torch.dtype]()
    images = ours(denoiser, on_step=lambda state: seen.append(state.x.dtype))
    assert {*seen, images.dtype} == {torch.float32}
    assert {p.dtype for p in denoiser.network.parameters()} == {dtype}
    reference = theirs(pipe, latents=denoiser.noise(SEEDS).to(dtype), generator=None)
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    assert (images - reference).abs().max() <= tolerance
    assert (images - exact).abs().mean() <= 1.1 * (reference - exact).abs().mean() + 1e-4


# --- out of memory

TEXTS: dict[str, Exception] = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB)."),
    "MPS buffer": RuntimeError("Invalid buffer size: 20.00 GiB"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    "Python": MemoryError(),
}


class Greedy(Control):
    """Raises at the first step."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def condition(self, state: State) -> State:
        raise self.error


@pytest.mark.parametrize("backend", TEXTS)
def test_out_of_memory_names_what_to_lower(backend: str) -> None:
    """With the numbers of this run. Fails if a backend's wording is not known, or Once hides the pipeline."""
    denoiser = Once(from_pipeline(tiny.sd()))
    with pytest.raises(OutOfMemory, match="out of memory while sampling 2 at once; lower max_b") as caught:
        ours(denoiser, controls=[Greedy(TEXTS[backend])])
    said = str(caught.value)
    for part in ("max_batch (now 2)", "dtype (now float32", "tiling (now off)", "image size (now 16 x 16)"):
        assert part in said
    assert isinstance(caught.value, torch.OutOfMemoryError) and caught.value.__cause__ is TEXTS[backend]


def test_out_of_memory_where_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the decoder, in the policy; other errors pass. Fails if the outer sentence covers the inner one."""
    pipe = tiny.sd().to(torch.bfloat16)
    pipe.vae.enable_tiling()
    denoiser = from_pipeline(pipe)

    def full(*_: Any, **__: Any) -> Any:
        raise TEXTS["CUDA"]

    class Large(Identity):
        write = full

    with pytest.raises(OutOfMemory, match=r"the policy writes 2 drafts; lower max_batch \(now 2 drafts"):
        ours(denoiser, controls=[PromptLoop(Large(), refinements=1)])
    monkeypatch.setattr(pipe.vae, "decode", full)
    with pytest.raises(OutOfMemory, match="while decoding 1 images; lower the decoder's share by s") as e:
        ours(denoiser, max_batch=1)
    assert "dtype" not in str(e.value) and "tiling" not in str(e.value) and "max_batch" not in str(e.value)
    with pytest.raises(RuntimeError, match="shapes"):
        ours(denoiser, controls=[Greedy(RuntimeError("shapes do not match"))])


def test_the_command_line_says_it_in_one_sentence(
    models: list[str], command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the sentence is told as an accident with --debug."""
    from promptloop.denoisers.sd import SD

    def full(*_: Any, **__: Any) -> Any:
        raise TEXTS["CUDA"]

    monkeypatch.setattr(SD, "clean", full)
    backbone = models[:2]
    code, _, err = command("generate", "a", *backbone, "--policy", "none", "--steps", "2", "-n", "2",
                           "--out", str(tmp_path / "o"))  # fmt: skip
    assert code == 2 and err.startswith("promptloop: out of memory while sampling 2 at once; lower max_batch")
    assert "--debug" not in err


def test_loras_on_the_command_line_are_recorded_and_replayed(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Fails if the trace forgets a LoRA, its weight or its sha256, or replay loads it without."""
    import tiny_loras

    path = tiny_loras.write(tiny.sd(), tmp_path / "a lora", "diffusers", seed=2)
    quick = ["generate", "a star", *models[:2], "--policy", "none", "--steps", "2", "-n", "1"]
    for name, more in {"plain": [], "ink": ["--lora", f"soft={path}:0.5", "--vae-slicing"]}.items():
        code, _, err = command(*quick, *more, "--out", str(tmp_path / name))
        assert code == 0, err
    plain, inked = (json.loads((tmp_path / n / "trace.json").read_text()) for n in ("plain", "ink"))
    assert plain["samples"][0]["image"]["sha256"] != inked["samples"][0]["image"]["sha256"]
    code, _, err = command("replay", str(tmp_path / "ink"))
    assert code == 0, err
    (told,) = inked["backbone"]["loras"]
    assert (told["name"], told["weight"]) == ("soft", 0.5) and len(told["sha256"]) == 64
    assert inked["job"]["vae_slicing"] is True and "loras" not in plain["backbone"]
    tiny_loras.write(tiny.sd(), path, "diffusers", seed=3)
    code, _, err = command("replay", str(tmp_path / "ink"))
    assert code == 2 and "the LoRA 'soft'" in err and "is not the one of the trace" in err
    for more, said in ((["--lora", "no/where/at/all"], "not exist"), (["--lora", f"{path}:x1"], "not exist"),
                       (["--offload", "disk"], "choose one of"),
                       (["--offload", "model", "--device", "cpu"], "main memory")):  # fmt: skip
        code, _, err = command(*quick, *more, "--out", str(tmp_path / "bad"))
        assert code == 2 and said in err, err

"""Rebuilds the embedded models (autoencoder, three backbones, mini-vlm) from one seed, resumable.

    python -m promptloop.world.build --out build --seed 0

Every stage keeps a checkpoint in its folder and is skipped when its result is there; a killed build goes on
where it was. Stages run one after the other with all the threads given, or alone (``--stage``), so that
mini-unet and mini-flow can be trained side by side with one thread each. A GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from promptloop.world import BACKBONES

MADE = (*BACKBONES, "mini-vlm")
STAGES = ("autoencoder", "latents", *MADE, "pack")
SCENES = 40_000  # scenes whose latents the backbones are trained on
STEPS = {
    "autoencoder": 1500,
    "text": 800,
    "mini-unet": 10_000,
    "mini-flow": 11_000,
    "curated": 6000,
    "mini-turbo": 1500,
    "words": 3000,
    "eyes": 1500,
    "naming": 500,
    "lessons": 1000,
    "comparing": 700,
    "tuning": 1200,
    "mending": 1500,
}
RATES = {"mini-unet": 1.5e-3, "mini-flow": 2e-3}
POOL = 12_000  # denoised estimates that mini-vlm is shown
TRIES = 24_000  # estimates of what was drawn for a query


def load_vae(out: Path, device: str) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(out / "vae" / "vae").eval().requires_grad_(False).to(device)


def load_pipeline(out: Path, name: str, device: str) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(out / name / "pipeline").to(device)


def run_stage(stage: str, out: Path, *, seed: int, scale: float, device: str) -> None:
    """One stage. ``scale`` multiplies every number of steps and scenes (tests use a tiny one)."""
    from promptloop.world import autoencoder, backbones, distil, drills, estimates, speaker, tries, tuning

    steps = {name: max(2, int(n * scale)) for name, n in STEPS.items()}
    scenes = max(576, int(SCENES * scale))
    if stage == "autoencoder":
        autoencoder.train(out / "vae", steps=steps[stage], seed=seed, device=device)
    elif stage == "latents":
        backbones.encode_scenes(load_vae(out, device), out, count=scenes, seed=seed, device=device)
    elif stage in RATES:
        vae = load_vae(out, device)
        backbones.train(
            stage,
            vae,
            out / stage,
            steps=steps[stage],
            curated_steps=steps["curated"],
            text_steps=steps["text"],
            seed=seed,
            scenes=scenes,
            lr=RATES[stage],
            device=device,
        )
    elif stage == "mini-turbo":
        teacher = load_pipeline(out, "mini-unet", device)
        latents = backbones.encode_scenes(teacher.vae, out, count=scenes, seed=seed, device=device)
        distil.train(teacher, latents, out / stage, steps=steps[stage], seed=seed)
    elif stage == "mini-vlm":
        unet, turbo = (load_pipeline(out, name, "cpu") for name in ("mini-unet", "mini-turbo"))
        latents = backbones.encode_scenes(unet.vae, out, count=scenes, seed=seed, device="cpu")
        pool = estimates.pool(out, unet, turbo, latents, count=max(576, int(POOL * scale)), seed=seed)
        lessons = out / stage / "lessons"
        tried = tries.tries(out, turbo, count=max(1024, int(TRIES * scale)), seed=seed)
        speaker.train(lessons, pool, tried, steps=steps, seed=seed, device=device)
        model, n = lessons / "model", steps["tuning"]
        tuning.train(out / stage, model, pool, tried, steps=n, seed=seed, device=device)
        model, n = out / stage / "model", steps["mending"]
        drills.finish(out / stage / "mending", model, pool, tried, steps=n, seed=seed, device=device)
    elif stage == "pack":
        pack(out)
    else:
        raise ValueError(f"unknown stage {stage!r}; stages: {', '.join(STAGES)}")


def pack(out: Path) -> None:
    """Writes ``out/weights``: the models as fp16 safetensors folders with their training logs."""
    import torch
    from transformers import AutoModelForImageTextToText

    from promptloop.world import autoencoder, backbones

    target = out / "weights"
    for name in MADE:
        folder = target / name
        shutil.rmtree(folder, ignore_errors=True)
        if name == "mini-vlm":
            shutil.copytree(out / name / "mending" / "model", folder)
            network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float16)
            network.save_pretrained(folder)
        else:
            pipe = load_pipeline(out, name, "cpu")
            autoencoder.centre(pipe.vae)  # no change where it was done after training
            pipe.to(torch.float16)
            pipe.save_pretrained(folder)
        shutil.copy(out / name / "log.jsonl", folder / "training_log.jsonl")
        for schedule in backbones.CURATED if name in RATES else ():
            shutil.copy(out / name / schedule / "log.jsonl", folder / f"{schedule}_log.jsonl")
        if name == "mini-vlm":
            shutil.copy(out / name / "mending" / "log.jsonl", folder / "mending_log.jsonl")
            shutil.copy(out / name / "lessons" / "log.jsonl", folder / "lessons_log.jsonl")
            for part in ("words", "eyes", "naming", "comparing"):
                shutil.copy(out / name / "lessons" / part / "log.jsonl", folder / f"{part}_log.jsonl")
    shutil.copy(out / "vae" / "log.jsonl", target / "autoencoder_log.jsonl")


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=STAGES, help="one stage only; default: all of them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of all steps and scenes, for a trial"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    for stage in (args.stage,) if args.stage else STAGES:
        began = time.time()
        run_stage(stage, args.out, seed=args.seed, scale=args.scale, device=device)
        print(f"{stage}: {time.time() - began:.0f} s on {device}", flush=True)


if __name__ == "__main__":
    main()

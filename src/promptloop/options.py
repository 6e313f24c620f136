"""What the commands take: each option once, with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="New or empty folder to write to.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]
Seed = Annotated[int, typer.Option(help="Seed of the first sample; the next has seed + 1.")]
Count = Annotated[int, typer.Option("-n", metavar="N", help="Samples of each query.")]
Backbone = Annotated[
    str,
    typer.Option(metavar="DIR|ID", help="mini-turbo, mini-unet, mini-flow, a diffusers folder or a hub id."),
]
WritesPrompts = Annotated[
    str,
    typer.Option(
        metavar="DIR|ID|URL#MODEL|none",
        help="mini-policy, mini-vlm, a chat model's folder or hub id, a server's address#model, or none.",
    ),
]
Refinements = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="How often the prompt is written, first step included; at most once in each step of the "
        "window.  [default: as the policy was trained, else 5, or as often as fits]",
    ),
]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="START END",
        help="Refine inside this part of the trajectory, and at the first step.  "
        "[default: as the policy was trained where that was told to; 0 0.75 for mini-turbo, 0.15 0.55 for "
        "mini-unet and mini-flow, else 0 1]",
    ),
]
OpenLoop = Annotated[
    bool | None,
    typer.Option(
        "--open-loop/--closed-loop",
        help="Write all prompts beforehand, without looking.  [default: as the policy was trained, else "
        "closed]",
    ),
]
Delay = Annotated[
    int, typer.Option(metavar="N", help="Steps that are done with the old prompt while a new one is written.")
]
Steps = Annotated[
    int | None, typer.Option(metavar="N", help="Denoising steps.  [default: the backbone's usual]")
]
Guidance = Annotated[
    float | None,
    typer.Option(metavar="SCALE", help="Classifier-free; 1 is without.  [default: the backbone's usual]"),
]
Negative = Annotated[str, typer.Option(metavar="TEXT", help="Negative prompt.")]
Temperature = Annotated[float, typer.Option(help="Of the policy's drafts; 0 takes the likeliest.")]
Compare = Annotated[bool, typer.Option("--compare", help="Also sample the query alone, from the same noise.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Size = Annotated[
    int, typer.Option(metavar="PIXELS", help="Side of the images.  [default: what the backbone is made for]")
]
Lora = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="[NAME=]PATH[:WEIGHT]", help="A LoRA of the backbone; may be repeated."),
]
Offload = Annotated[
    str, typer.Option(help="none; model or sequential: weights wait in main memory (slower, for small GPUs).")
]
Tiling = Annotated[bool, typer.Option("--vae-tiling", help="Decode in overlapping tiles.")]
Told = Annotated[
    float | None,
    typer.Option(
        metavar="SCALE", help="What FLUX.1-dev is told, guidance distilled into it.  [default: 3.5]"
    ),
]
Steered = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="NAME:SETTING=VALUE,...",
        help="A method that steers the sampling (`promptloop methods` lists them); may be repeated.",
    ),
]
Solved = Annotated[
    str,
    typer.Option(
        metavar="NAME[:eta=X]",
        help="ddim, euler, heun, flow-sde, dance-sde, cps, or a diffusers scheduler's class.  "
        "[default: the backbone's own]",
    ),
]
Slicing = Annotated[bool, typer.Option("--vae-slicing", help="Decode one image at a time.")]
MaxBatch = Annotated[int, typer.Option(metavar="N", help="Samples that run together.")]

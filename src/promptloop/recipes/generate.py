"""The main job: queries in; images, the story of how each came about, and a trace to replay it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from promptloop.controls.guidance import CFG
from promptloop.controls.plan import room_for
from promptloop.controls.prompt import PromptLoop
from promptloop.denoisers.denoiser import Denoiser
from promptloop.denoisers.memory import lowering, told
from promptloop.ledger import Ledger
from promptloop.policies.contract import Policy
from promptloop.recipes import parts
from promptloop.recipes.described import describe, levels_of
from promptloop.recipes.film import Clock, Film
from promptloop.recipes.folder import check, save
from promptloop.recipes.job import Job
from promptloop.recipes.parts import Part
from promptloop.recipes.played import LOOPS, Played, played
from promptloop.recipes.progress import Progress, silent
from promptloop.recipes.score import score, unscored
from promptloop.recipes.shot import Frame, Picture, Shot, noted, pixels
from promptloop.recipes.steering import Steering, steering
from promptloop.recipes.usual import usual
from promptloop.sample import Control, State
from promptloop.solvers import default_solver
from promptloop.timing import Stopwatch, TimedPolicy

REFINEMENTS = 5  # unless told otherwise


@final
@dataclass(frozen=True, eq=False)
class Generated:
    """What a run made: `images` and, with compare, `base` [N, 3, H, W] in [0, 1], of 8 bits.

    `shots` tell how each image came about; `trace` is what trace.json holds; `out` is the folder written.
    """

    shots: tuple[Shot, ...]
    trace: dict[str, Any]
    out: Path | None = None

    @property
    def images(self) -> Tensor:
        return stacked([shot.picture for shot in self.shots])

    @property
    def base(self) -> Tensor | None:
        bases = [shot.base for shot in self.shots if shot.base is not None]
        return stacked(bases) if bases else None


def generate(
    query: str | Sequence[str],
    *,
    backbone: str | Denoiser = "mini-turbo",
    policy: str | Policy = "mini-policy",
    refinements: int | None = None,
    window: tuple[float, float] | None = None,
    open_loop: bool | None = None,
    delay: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    temperature: float = 0.0,
    seed: int = 0,
    n: int = 4,
    compare: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    max_batch: int = 16,
    size: int = 0,
    lora: str | Sequence[str] | None = None,
    offload: str = "none",
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    embedded_guidance: float | None = None,
    control: str | Sequence[str] | None = None,
    solver: str = "",
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Generated:
    """`n` images of each query, with the prompt refined while they form.

    `Job` says what the settings mean. `backbone` and `policy` may also be objects, whose trace cannot be
    replayed. `refinements`, `window` and `open_loop` None are as the policy was trained, where its folder
    says so; else `refinements` is five, or as many as fit where that is fewer, the loop is closed, and
    `window`, as `steps` and `guidance`, the backbone's usual one (`usual`). `out` is a new or empty folder to
    write to (`overwrite` to reuse one). ValueError on bad values, before anything is loaded where possible.
    """
    queries = (query,) if isinstance(query, str) else tuple(query)
    trained = played(policy, Played(refinements, window, LOOPS[open_loop]))
    window, open_loop = trained.window, trained.loop == "open" and not (delay and open_loop is None)
    if window is None or steps is None or guidance is None:
        its = usual(backbone)
        window = its.window if window is None else window
        steps = its.steps if steps is None else steps
        guidance = its.guidance if guidance is None else guidance
    if refinements is None:
        refinements = fitting(steps, window, delay, trained.refinements)
    job = Job(queries, named(backbone), named(policy), refinements, window, open_loop, steps, guidance,
              negative, temperature, seed, n, compare, device, dtype, max_batch, delay, size, specs(lora),
              offload, vae_tiling, vae_slicing, embedded_guidance, specs(control), solver)  # fmt: skip
    if not isinstance(backbone, str):
        settled(job)
    folder = None if out is None else check(Path(out), overwrite)
    watch, tell = Stopwatch(), progress or silent
    with watch("load"):
        backbone_part, policy_part = load(job, backbone, policy, tell)
    made = run(job, backbone_part, policy_part, watch, tell)
    return made if folder is None else written(made, folder, watch, tell)


def specs(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One [NAME=]PATH[:WEIGHT] of a LoRA, or NAME:SETTING=VALUE,... of a control, or several, as a tuple."""
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def fitting(steps: int, window: tuple[float, float], delay: int, wanted: int | None = None) -> int:
    """`wanted` (None: REFINEMENTS), or as many as fit; what cannot run at all is `Job`'s to refuse."""
    wanted = REFINEMENTS if wanted is None else wanted
    if steps < 1 or not 0 <= window[0] < window[1] <= 1:
        return wanted
    return max(min(wanted, room_for(steps, window, delay)[1]), 1)


def settled(job: Job) -> None:
    """ValueError where a backbone that is loaded already is to be loaded in some way."""
    given = job.size or job.lora or job.offload != "none" or job.vae_tiling or job.vae_slicing
    if given or job.embedded_guidance is not None:
        raise ValueError(
            "size, lora, offload, vae_tiling, vae_slicing and embedded_guidance are for a backbone loaded by "
            "its name; this one is an object: give them to load(), or switch `with denoiser.loras(...)`"
        )


def written(made: Generated, out: Path, watch: Stopwatch, tell: Progress) -> Generated:
    """The run, with its files in `out`."""
    return Generated(made.shots, save(made.shots, made.trace, out, watch, tell), out)


def load(
    job: Job, backbone: str | Denoiser, policy: str | Policy, tell: Progress
) -> tuple[Part, Part | None]:
    """Both parts of the job; the policy is None where the job has none."""
    device, dtype = parts.device_named(job.device), getattr(torch, job.dtype)
    tell("loading", 0, 2)
    names = ((backbone, "backbone"), (policy, "policy"))
    for name, role in [(name, role) for name, role in names if isinstance(name, str)]:
        parts.locate(name, role)
    if isinstance(backbone, str):
        first = parts.backbone(backbone, device, dtype, lora=job.loras, size=job.size, offload=job.offload,
                               tiling=job.vae_tiling, slicing=job.vae_slicing,
                               embedded_guidance=job.embedded_guidance)  # fmt: skip
    else:
        first = Part(job.backbone, backbone)
    tell("loading", 1, 2)
    if isinstance(policy, str):
        second = None if policy == "none" else parts.policy(policy, device, dtype, job.temperature)
    else:
        second = Part(job.policy, policy)
    tell("loading", 2, 2)
    return first, second


def run(job: Job, backbone: Part, policy: Part | None, watch: Stopwatch, tell: Progress) -> Generated:
    """The job on loaded parts, nothing written."""
    denoiser: Denoiser = backbone.value
    with watch("load"):
        steered = steering(job.control, job.solver, denoiser, denoiser.device)
    solver = steered.solver or default_solver(denoiser)
    steps = job.refined_of(len(levels_of(job, denoiser, solver)) - 1)
    looped: list[Control] = []
    if policy is not None:
        timed = TimedPolicy(policy.value, watch)
        kind: Literal["open", "closed"] = "open" if job.open_loop else "closed"
        looped = [PromptLoop(timed, job.refinements, job.window, loop=kind, delay=job.delay)]
    phase = "refining" if looped else "sampling"
    pictures, ledger = shoot(job, denoiser, looped, steered, steps, watch, tell, phase)
    bases: Sequence[Picture | None] = [None] * len(pictures)
    if job.compare:
        alone = Steering(solver=steered.solver)
        bases, _ = shoot(job, denoiser, [], alone, steps, watch, tell, "sampling the query alone")
    why = {query: unscored(query, backbone.embedded) for query in job.queries}
    with watch("score"):
        graded = [graded_where(why, job, row) for row in (pictures, bases)]
    names = tuple(spec.partition(":")[0] for spec in job.control)
    shots = tuple(
        Shot(i, query, seed, picture, base, names)  # type: ignore[arg-type]
        for i, ((query, seed), picture, base) in enumerate(zip(job.samples, *graded, strict=True))
    )
    return Generated(shots, describe(job, backbone, policy, shots, why, steps, watch, solver, ledger))


def shoot(
    job: Job,
    denoiser: Denoiser,
    looped: list[Control],
    steered: Steering,
    steps: tuple[int, ...],
    watch: Stopwatch,
    tell: Progress,
    phase: str,
) -> tuple[list[Picture], Ledger]:
    """Samples every (query, seed) under `looped`, CFG and `steered`; frames at `steps`; the cost."""
    queries, seeds = zip(*job.samples, strict=True)
    solver = steered.solver or default_solver(denoiser)
    done, total = 0, (len(levels_of(job, denoiser, solver)) - 1) * -(-len(seeds) // job.max_batch)

    def on_step(state: State) -> None:
        nonlocal done, total
        done += state.step > 0
        total = max(total, done)  # a search runs the loop again and again
        tell(phase, done, total)

    guided = [] if steered.guides else [CFG(job.guidance, job.negative or None)]
    everything = [*looped, *guided, *steered.controls, Film(steps, watch), Clock(watch)]
    repeatable = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with watch("loop"), repeatable:
        result = steered.sample(
            denoiser,
            queries,
            seeds=seeds,
            steps=job.steps,
            controls=everything,
            max_batch=job.max_batch,
            decode=False,
            on_step=on_step,
        )
    if len(result.state) != len(queries):
        raise ValueError(
            f"the controls keep {len(result.state)} samples of {len(queries)}; here one of each is wanted: "
            "give kept=1, or pick=draw or best"
        )
    images = result.images  # of a search, which scored them
    if images is None:
        with watch("decode"), torch.no_grad():
            latents = result.state.x.split(job.max_batch)
            with told(f"decoding {len(latents[0])} images", lowering(denoiser, len(latents[0]))):
                images = torch.cat([denoiser.decode(part) for part in latents])
    memory = result.state.memory
    frames = memory["frames"].permute(0, 1, 3, 4, 2).numpy() if steps else [()] * len(images)
    drafts = memory.get("drafts", [()] * len(images))
    pictures = [
        Picture(
            pixels(image),
            tuple(Frame(step, frame) for step, frame in zip(steps, row, strict=True)),
            tuple(noted(step, draft) for step, draft in zip(steps, written, strict=True)) if written else (),
        )
        for image, row, written in zip(images, frames, drafts, strict=True)
    ]
    return pictures, result.ledger


def graded_where(why: dict[str, str | None], job: Job, row: Sequence[Picture | None]) -> list[Picture | None]:
    """The pictures, with a score where their query can be scored."""
    graded = list(row)
    rows = [i for i, (query, _) in enumerate(job.samples) if why[query] is None and row[i] is not None]
    found = [picture for i in rows if (picture := row[i]) is not None]
    if found:
        scores = score([picture.image for picture in found], [job.samples[i][0] for i in rows])
        for i, picture, grade in zip(rows, found, scores, strict=True):
            graded[i] = Picture(picture.image, picture.frames, picture.notes, grade)
    return graded


def stacked(pictures: Sequence[Picture]) -> Tensor:
    images = np.stack([picture.image for picture in pictures])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def named(part: object) -> str:
    """A name as it is; for an object its class, which a trace can tell but not rebuild."""
    return part if isinstance(part, str) else f"<{type(part).__name__}>"

"""The closed loop at the published sizes: SDXL and SD3.5-medium behind a 3B Qwen2.5-VL, with random weights.

    python benchmarks/full_size.py --out full_size                          # one H100, ten minutes, all rows
    python benchmarks/full_size.py --size tiny --device cpu --out full_size  # the same code in a minute

For each backbone: seconds and peak memory of a batch with 0, 1, 3 and 5 refinements, closed and open, and
with the drafts written in the background; then each part of the work beside its floor (benchmarks/floor.py);
then episodes a second of GRPO on SDXL in eight steps without guidance, against the naive trainer of
benchmarks/grpo_throughput.py (medians over updates of each in turn). Every draft has the same number of
tokens. Rounds over all rows are repeated while the time lasts; a ratio is the median over rounds of seconds
over those without a refinement in the same round. DIR/full_size.json and DIR/full_size.md are written anew
after every row.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import shapes
from floor import Phase, Rates, by_network, measured, operations, wait
from full_size_tables import markdown
from grpo_throughput import PHASES, medians, naive

from promptloop.controls import CFG, PromptLoop
from promptloop.denoisers import from_pipeline
from promptloop.denoisers.denoiser import Denoiser
from promptloop.objectives.contract import Share
from promptloop.objectives.policy_gradient import Surrogate
from promptloop.objectives.prompts import PromptGRPO
from promptloop.parameters import LoRA, with_lora
from promptloop.policies.contract import Request
from promptloop.policies.mllm import Mllm
from promptloop.recipes.parts import device_named
from promptloop.rewards.contract import Reward
from promptloop.rollout import Geometry
from promptloop.sample import sample
from promptloop.timing import Stopwatch, TimedPolicy

Report = dict[str, Any]
Row = dict[str, Any]
DEFAULTS: dict[str, dict[str, Any]] = {  # tokens of a draft, delay in the background, groups, their size
    "full": {"tokens": 48, "delay": 5, "queries": 2, "group": 8, "steps": {"sdxl": 50, "sd3.5-medium": 28}},
    "tiny": {"tokens": 4, "delay": 1, "queries": 1, "group": 2, "steps": {"sdxl": 8, "sd3.5-medium": 8}},
}
SHARE = {"sdxl": 0.4, "sd3.5-medium": 0.7}  # of the time, by when no new round of it begins


@final
@dataclass(frozen=True)
class Way:
    """One row: how prompts are written."""

    refinements: int
    loop: Literal["closed", "open"] = "closed"
    delay: int = 0

    def control(self, policy: Any) -> PromptLoop:
        return PromptLoop(
            policy, self.refinements, loop=self.loop, delay=self.delay, background=self.delay > 0
        )


def ways(delay: int) -> list[Way]:
    """Without a refinement first, then all others."""
    closed, opened = ([Way(n, loop) for n in (1, 3, 5)] for loop in ("closed", "open"))  # type: ignore[arg-type]
    return [Way(0), *closed, *opened, Way(5, "closed", delay)]


# --- sampling


@torch.no_grad()
def timed(way: Way, denoiser: Denoiser, policy: Mllm, batch: int, steps: int) -> Row:
    """One run of the library's own loop. RuntimeError where a draft was refused or a pixel is not finite."""
    on_cuda, watch = denoiser.device.type == "cuda", Stopwatch()
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(denoiser.device)
    shown = policy if way.delay else TimedPolicy(policy, watch)  # which waits for the whole device
    with watch("denoiser"):
        end = sample(denoiser, shapes.QUERIES[:batch], seeds=range(batch), steps=steps,
                     controls=[way.control(shown), CFG(5.0)])  # fmt: skip
    assert end.images is not None
    drafts = [draft for row in end.state.memory["drafts"] for draft in row]
    if len(drafts) != batch * way.refinements or any(draft.refused for draft in drafts):
        raise RuntimeError("a draft was refused, so this is not the time of a loop with its refinements")
    if {len(draft.tokens) for draft in drafts} - {policy.max_new_tokens}:
        raise RuntimeError("drafts differ in length")
    if not bool(end.images.isfinite().all()):
        raise RuntimeError("the images are not finite")
    peak = torch.cuda.max_memory_allocated(denoiser.device) / 2**30 if on_cuda else None
    told = None if way.delay else watch.seconds.get("policy", 0.0)
    return {**asdict(way), "seconds": sum(watch.seconds.values()), "policy seconds": told, "peak GiB": peak}


def rounds(
    denoiser: Denoiser, policy: Mllm, batch: int, steps: int, delay: int, until: float
) -> Iterator[list[Row]]:
    """The rows over all rounds so far, after every run; no new round begins that would not end by `until`."""
    order = ways(delay)
    found: dict[Way, list[Row]] = {}
    timed(order[1], denoiser, policy, batch, max(2, delay + 1))  # nothing is timed the first time
    while True:
        began = time.perf_counter()
        for way in order:
            found.setdefault(way, []).append(timed(way, denoiser, policy, batch, steps))
            base = found[order[0]]
            yield [summed(runs, base) for runs in found.values()]
        if 2 * time.perf_counter() - began > until:
            return


def summed(runs: Sequence[Row], base: Sequence[Row]) -> Row:
    """One row of several runs: medians, and the ratio to the runs without a refinement of the same rounds."""
    middle = {"seconds": statistics.median(run["seconds"] for run in runs)}
    told = [run["policy seconds"] for run in runs if run["policy seconds"] is not None]
    ratios = [run["seconds"] / alone["seconds"] for run, alone in zip(runs, base, strict=False)]
    middle["policy seconds"] = statistics.median(told) if told else None  # type: ignore[assignment]
    return {**runs[0], **middle, "ratio": statistics.median(ratios), "rounds": len(runs)}


# --- the floor


@torch.no_grad()
def parts(denoiser: Denoiser, policy: Mllm, batch: int, steps: int) -> list[Phase]:
    """What one refinement and one step are made of, for a batch."""
    device, asked = denoiser.device, shapes.QUERIES[:batch]
    x, level = denoiser.noise(range(2 * batch)), denoiser.levels(steps)[1]
    cond = denoiser.embed([*asked, *asked])
    side = policy.image_size or 0
    picture = torch.rand(3, side, side)
    requests = [Request(query, query, picture, k / 100) for k, query in enumerate(asked)]
    short = replace(policy, max_new_tokens=1)
    read = measured("policy reads", lambda: short.write(requests, range(batch)), policy.network, device)
    whole = measured("", lambda: policy.write(requests, range(batch)), policy.network, device)
    rest = policy.max_new_tokens - 1
    token = Phase("policy writes a token", (whole.operations - read.operations) // rest, read.weights,
                  (whole.seconds - read.seconds) / rest)  # fmt: skip
    vae = denoiser.pipe.vae.decoder  # type: ignore[attr-defined]
    return [
        measured("denoiser, a guided step", lambda: denoiser.clean(x, level, cond), denoiser.network, device),
        measured("prompts embedded", lambda: denoiser.embed(asked), None, device),
        measured("estimates decoded", lambda: denoiser.decode(x[:batch], size=side), vae, device),
        read,
        token,
    ]


# --- training


class Uneven(Reward):
    """Some number in [0, 1) for every image: groups differ, so that all are trained on."""

    def __call__(self, images: torch.Tensor, queries: Sequence[str]) -> torch.Tensor:
        return (images.double().mean((1, 2, 3)) * 1e4).frac().float()


def training(denoiser: Denoiser, policy: Mllm, queries: int, group: int) -> PromptGRPO:
    """Five refinements in eight unguided steps, as with SDXL-Turbo."""
    geometry = Geometry(queries, group, 5, denoising_steps=8, guidance=1.0, image_dropout=0.0, max_batch=8)
    return PromptGRPO(
        denoiser=denoiser, policy=with_lora(policy, LoRA(16, 32), seed=0), reward=Uneven(),
        queries=lambda number: shapes.QUERIES[:queries], geometry=geometry,
        surrogate=Surrogate(longest=policy.max_new_tokens), micro_batch=8, tolerance=0.25)  # fmt: skip


def counted(objective: PromptGRPO) -> dict[str, int]:
    """Operations for an episode by phase, from one whole update."""
    batch: list[Any] = []
    found = by_network(lambda: batch.append(objective.collect(0, Share())))
    writing = found[type(objective.policy.network).__name__]
    with torch.no_grad():
        decode = operations(lambda: objective.denoiser.decode(objective.denoiser.noise([0])))
    episodes = objective.geometry.episodes
    backward = operations(lambda: [objective.loss(part)[0].backward() for part in batch[0].parts])
    objective.policy.network.zero_grad(set_to_none=True)
    sampling = (sum(found.values()) - writing) // episodes - decode
    return {"policy": writing // episodes, "denoiser": sampling, "decode": decode,
            "update": backward // episodes}  # fmt: skip


def throughput(
    denoiser: Denoiser, policy: Mllm, queries: int, group: int, rates: Rates, repeats: int
) -> Report:
    """Seconds for an episode by phase, ours and naive, medians of `repeats` updates each, and how far ours is
    from the arithmetic floor.
    """
    objective = training(denoiser, policy, queries, group)
    floor = {phase: n / rates.matrix for phase, n in counted(objective).items()}
    found = medians({"ours": objective, "naive": naive(objective, 1)}, repeats)
    ours, other = found["ours"], found["naive"]
    phases = [
        {"phase": phase, "ours": ours[phase], "naive": other[phase], "share": ours[phase] / ours["all"],
         "floor": floor.get(phase)} for phase in PHASES]  # fmt: skip
    return {"phases": phases, "repeats": repeats,
            "episodes a second": 1 / ours["all"], "naive": 1 / other["all"],
            "ratio": other["all"] / ours["all"], "floor": sum(floor.values())}  # fmt: skip


# --- all of it


def machine(device: torch.device) -> Report:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=sorted(shapes.SIZES), default="full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--only", nargs="*", choices=[*shapes.BACKBONES, "grpo"], default=None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, help="denoising steps  [default: 50 and 28; 8 when tiny]")
    parser.add_argument("--minutes", type=float, default=9.0, help="no round begins that would end later")
    parser.add_argument("--repeats", type=int, default=3, help="updates of each side of GRPO, timed in turn")
    parser.add_argument("--out", type=Path, default=Path("full_size"))
    options = parser.parse_args(arguments)
    began, its = time.perf_counter(), DEFAULTS[options.size]
    device, dtype = device_named(options.device), getattr(torch, options.dtype)
    small, wanted = shapes.SIZES[options.size], options.only or [*shapes.BACKBONES, "grpo"]
    options.out.mkdir(parents=True, exist_ok=True)
    rates = Rates.of(device, dtype)
    report: Report = {
        "size": options.size, "dtype": options.dtype, "batch": options.batch, "tokens": its["tokens"],
        "machine": machine(device), "rates": asdict(rates), "backbones": {}, "grpo": None}  # fmt: skip

    def keep() -> None:
        (options.out / "full_size.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.out / "full_size.md").write_text(markdown(report))

    policy = shapes.policy(small, str(device), dtype, its["tokens"])
    for name in [name for name in shapes.BACKBONES if name in wanted]:
        denoiser = from_pipeline(shapes.BACKBONES[name](small, str(device), dtype))
        steps = options.steps or its["steps"][name]
        until = began + 60 * options.minutes * SHARE[name]
        found: Report = {"steps": steps, "rows": [], "parts": []}
        report["backbones"][name] = found
        found["parts"] = [p.row(rates) for p in parts(denoiser, policy, options.batch, steps)]
        for rows in rounds(denoiser, policy, options.batch, steps, its["delay"], until):
            found["rows"] = rows
            keep()
        del denoiser
        torch.cuda.empty_cache()
    if "grpo" in wanted:
        denoiser = from_pipeline(shapes.sdxl(small, str(device), dtype))
        report["grpo"] = throughput(denoiser, policy, its["queries"], its["group"], rates,
                                    options.repeats)  # fmt: skip
    wait(device)
    report["seconds"] = time.perf_counter() - began
    keep()
    print(markdown(report))
    return report


if __name__ == "__main__":
    main()

"""`promptloop reproduce steering | grid | dial`: methods that steer the sampling, on the embedded world.

Every row is a run that `promptloop generate --control ...` makes: a list of controls in the same words, a
policy or none. Rows that steer by the learned reward have the oracle for gold, and the other way round.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptloop.bench.arms import Found, Way, measured
from promptloop.bench.paired import difference, interval
from promptloop.names import one_of
from promptloop.recipes import parts
from promptloop.recipes.claims import EIGHT, TWENTY
from promptloop.recipes.places import writable
from promptloop.recipes.progress import Progress, silent
from promptloop.recipes.rows import REWARDS, digests, kept, noise_of, over_seeds
from promptloop.recipes.steering import loras, steering
from promptloop.recipes.titles import STUDIES
from promptloop.watch import diversity
from promptloop.world import study

QUERIES, SEEDS = 21, 3  # held-out, three of each task; noises of each
QUICK = 7
BUDGETS = (2, 4, 8, 16)  # times the evaluations of the plain sampler
TUNED = str(study("tuned-preference", 0))


@final
@dataclass(frozen=True)
class Arm:
    """One row: `controls` as on the command line, behind `policy` ("none" or a name)."""

    title: str
    controls: tuple[str, ...] = ()
    policy: str = "none"
    backbone: str = "mini-turbo"
    solver: str = ""

    @property
    def way(self) -> Way:
        """How `promptloop generate` samples the embedded backbones."""
        return EIGHT if self.backbone == "mini-turbo" else TWENTY


METHODS = {  # name -> controls at {b} times the evaluations of the plain sampler
    "best-of": "best-of:reward={reward},of={b}",
    "zero-order": "zero-order:reward={reward},rounds={less},neighbours=1",
    "fk": "fk:reward={reward},particles={b},every=2,strength={strength},pick=best",
    "svdd": "svdd:reward={reward},candidates={b}",
    "demon": "demon:reward={reward},candidates={b}",
    "dts-star": "dts-star:reward={reward},rollouts={b}",
    "das": "das:reward={reward},particles={half},strength=10,pick=best",
    "reno": "reno:reward={reward},iterations={half}",
    "reward-gradient": "reward-gradient:reward={reward},scale=0.2,relative=true recurrence:times={b}",
}
GRADIENT = ("das", "reno", "reward-gradient")  # they need more of a reward than its value
STRENGTH = {"preference": 2, "oracle": 10}  # of FK: their scales differ
PAIRED = 4  # the budget at which methods are paired with the policy


def steered() -> dict[str, Arm]:
    """Every method by the learned reward, and by the oracle where its values are enough; then the pairs."""
    arms = {"base": Arm("the query"), "policy": Arm("the policy", policy="mini-policy")}
    for reward in ("preference", "oracle"):
        able = [name for name in METHODS if reward == "preference" or name not in GRADIENT]
        for budget, policy in [(b, "none") for b in BUDGETS] + [(PAIRED, "mini-policy")]:
            for name in able:
                said = METHODS[name].format(reward=reward, b=budget, half=budget // 2, less=budget - 1,
                                            strength=STRENGTH[reward])  # fmt: skip
                pair = policy != "none"
                title = f"{name}, by {reward}" + (", behind the policy" if pair else "")
                arms[f"{name}-{reward}-{budget}" + "-policy" * pair] = Arm(title, tuple(said.split()), policy)
    return arms


def grid() -> dict[str, Arm]:
    """{policy} x {tuned LoRA} x {RLG 1, 1.6} x {FK}; without tuned weights RLG has nothing to act on."""
    arms = {}
    for policy in ("none", "mini-policy"):
        for w in (0.0, 1.0, 1.6):
            for fk in (False, True):
                said = {0.0: "base", 1.0: "tuned (RLG w = 1)", 1.6: "tuned, RLG w = 1.6"}[w]
                more = [f"rlg:tuned={TUNED},w={w}"] if w else []
                more += ["fk:reward=preference,particles=4,every=5,strength=2,pick=best"] if fk else []
                title = " + ".join([*(["policy"] if policy != "none" else []), said, *(["FK"] if fk else [])])
                arms[f"{policy}-{w}-{fk}"] = Arm(title, tuple(more), policy, "mini-unet", "ddim:eta=1")
    return arms


def dial() -> dict[str, Arm]:
    """RLG from the base past the tuned weights."""
    return {
        f"w{w:g}": Arm(f"w = {w:g}", (f"rlg:tuned={TUNED},w={w}",), backbone="mini-unet")
        for w in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    }


ARMS = {"steering": steered, "grid": grid, "dial": dial}


def compare(name: str, out: Path, *, quick: bool = False, progress: Progress | None = None) -> str:
    """Measures the rows of one study into `out/NAME` and returns its table; goes on where it was stopped.

    ValueError for rows of other settings or weights, or a folder that cannot be written to.
    """
    writable(out)
    arms = ARMS[one_of(name, ARMS, "study")]()
    count, seeds = (QUICK, 1) if quick else (QUERIES, SEEDS)
    first = out / name / f"{next(iter(arms))}.safetensors"
    found: dict[str, dict[str, Any]] = {}
    for k, (key, arm) in enumerate(arms.items()):
        (progress or silent)(f"row {key}", k, len(arms))
        found[key] = row(arm, out / name / f"{key}.json", count, seeds, first)
    text = f"### {STUDIES[name]}\n\n" + table(arms, found)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return text


def row(arm: Arm, file: Path, count: int, seeds: int, first: Path) -> dict[str, Any]:
    """The row's scores [S][Q] and costs, the distance between a query's images and to those of the study's
    `first` row; from its file, or measured now.
    """

    def measure() -> dict[str, Any]:
        added = [f"{name}={path}:0" for path, name in loras(arm.controls).items()]
        denoiser = parts.backbone(arm.backbone, torch.device("cpu"), torch.bfloat16, lora=added).value
        policy = None if arm.policy == "none" else parts.load_policy(arm.policy, temperature=0.0)
        by = steering(arm.controls, arm.solver, denoiser, "cpu")

        def run(k: int, asked: Sequence[str], rewards: dict[str, Any]) -> Found:
            return measured(denoiser, policy, arm.way, asked, rewards, seed=noise_of(k), solver=by.solver,
                            steered=by.controls, run=by.sample, max_batch=QUERIES)  # fmt: skip

        told, images = over_seeds(count, seeds, run)
        return {**told, **distances(images, file.with_suffix(".safetensors"), first)}

    return kept(file, settings_of(arm, count, seeds), measure)


def settings_of(arm: Arm, count: int, seeds: int) -> dict[str, Any]:
    """All that a row depends on."""
    used = [(arm.backbone, "backbone"), *((path, "backbone") for path in loras(arm.controls))]
    used += [(arm.policy, "policy")] if arm.policy != "none" else []
    told = json.dumps({**asdict(arm), "queries": count, "seeds": seeds, "weights": digests(used)})
    return json.loads(told.replace(str(Path(TUNED).parent), "studies"))  # wherever the package lies


def distances(images: Sequence[Tensor], file: Path, first: Path) -> dict[str, float]:
    """Root-mean-square distances of images [S] x [Q, 3, H, W], which are kept in `file`."""
    whole = {"images": (torch.stack([*images], dim=1) * 255).round().byte()}  # [Q, S, 3, H, W]
    save_file(whole, file)
    made = whole["images"].float() / 255
    told = (
        {"diversity": float(diversity(made.flatten(0, 1), made.shape[1]).mean())} if len(images) > 1 else {}
    )
    base = load_file(first)["images"].float() / 255 if first.exists() else made
    return told | {"moved": float((made - base).square().mean(dim=(2, 3, 4)).sqrt().mean())}


# --- tables


def table(arms: dict[str, Arm], found: dict[str, dict[str, Any]]) -> str:
    """Markdown: what each row reached and cost, and what it gained on the study's first row, paired."""
    head = ("", "evaluations", "backward", "rewards", "learned reward", "soft", "strict",
            "soft, less the first row's", "diversity", "moved")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    first = torch.tensor(next(iter(found.values()))["scores"]["oracle"])
    for key, its in found.items():
        soft, strict, other = (torch.tensor(its["scores"][reward]) for reward in REWARDS)
        cells = [arms[key].title]
        cells += [
            f"{its['cost'][name]:.0f}" for name in ("denoiser calls", "backward passes", "reward calls")
        ]
        cells += [f"{other.mean():.2f}", str(interval(soft)), f"{strict.mean():.3f}"]
        cells += [str(difference(soft, first)), f"{its.get('diversity', 0):.3f}", f"{its['moved']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

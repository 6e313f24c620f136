"""How good is a policy while it is being made? 140 training-side queries, drawn with a seed of their own.

    python benchmarks/validation.py query mini-vlm runs/mini lessons tuning ahead look
    python benchmarks/validation.py runs/mini --refinements 1
    python benchmarks/validation.py look --shown "another's"
    python benchmarks/validation.py mini-policy,look-or-keep --refinements 8

A policy is "query" (nobody writes), a name or folder as `--policy` takes it, or a script: "lessons" and
"tuning" answer as mini-vlm's two trainings do, "ahead" and "look" are the best of the headroom study,
"look-or-keep" keeps the prompt in force where nothing lacks; "A,B": the first draft is A's, the others B's.
Soft and strict scores on a backbone sampled as usual (bfloat16, seeds 50,000 and up), one standard error;
for chat models also what 420 first drafts say: "right" names every thing with its shape, count and colour
and nothing else (details may be missing; the relation and the ground are not looked at), "mixed up"
something that was not asked. The world is small, so some of the queries occur in trainings too. Held-out
queries are for docs/results.md; nothing is chosen on them.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

import torch

from promptloop.bench.arms import Way, measured
from promptloop.policies.contract import Policy, Request
from promptloop.policies.first import First
from promptloop.policies.fixed import Fixed
from promptloop.policies.mllm import Mllm
from promptloop.recipes import parts
from promptloop.recipes.rewards import reward_named
from promptloop.recipes.usual import usual
from promptloop.world import lessons, tuning
from promptloop.world.captions import Group, parse
from promptloop.world.queries import queries
from promptloop.world.reading import read
from promptloop.world.scripted import Ahead, Look, bare


@dataclass(frozen=True)
class Teacher(Fixed):
    """Answers by the rewrites that mini-vlm is taught."""

    tuned: bool = False

    def answer(self, request: Request, rng: random.Random) -> str:
        ask = parse(request.query)
        return tuning.answer(None, ask, rng) if self.tuned else lessons.rewrite(ask, rng)


@dataclass(frozen=True)
class LookOrKeep(Fixed):
    """Mends what lacks, with the oracle's own eyes, and else keeps the prompt."""

    look: Look = Look(until=1.0)

    def answer(self, request: Request, rng: random.Random) -> str:
        if request.estimate is None:
            return request.prompt
        ask = parse(request.query)
        wanted = ask if request.progress >= self.look.fine else bare(ask)
        lacking = self.look.lacking(read(request.estimate[None]), wanted)
        return self.look.answer(request, rng) if lacking else request.prompt


SCRIPTS: dict[str, Policy] = {
    "lessons": Teacher(),
    "tuning": Teacher(tuned=True),
    "ahead": Ahead(places=True, colours=True),
    "look": Look(),
    "look-all-along": Look(fine=0.0, until=1.0),
    "look-or-keep": LookOrKeep(),
}


def says(said: Group, asked: Group) -> bool:
    """Whether `said` is `asked`, perhaps with a colour or a place more, perhaps with a detail less."""
    detail = all(getattr(said, k) in (None, getattr(asked, k)) for k in ("size", "pattern", "outlined"))
    return (
        detail
        and (said.shape, said.count) == (asked.shape, asked.count)
        and asked.colour in (None, said.colour)
    )


def verdict(query: str, text: str) -> str:
    """ "right" (every group and nothing else), "less" (a group is missing), "mixed up" or "unreadable"."""
    try:
        said = parse(text)
    except ValueError:
        return "unreadable"
    left = list(parse(query).groups)
    for group in said.groups:
        found = next((g for g in left if says(group, g)), None)
        if found is None:
            return "mixed up"
        left.remove(found)
    return "less" if left else "right"


def first_drafts(policy: Policy, asked: list[str], repeats: int = 3) -> dict[str, float]:
    """How often each verdict is given."""
    found: dict[str, float] = {}
    for repeat in range(repeats):
        seeds = [1000 * repeat + i for i in range(len(asked))]
        drafts = policy.write([Request(query, query, None, 0.0) for query in asked], seeds)
        for query, draft in zip(asked, drafts, strict=True):
            name = f"kept: {draft.kept}" if draft.kept else verdict(query, draft.text)
            found[name] = found.get(name, 0) + 1 / (repeats * len(asked))
    return found


def policy_named(name: str, temperature: float) -> Policy | None:
    """A script, a chat model, or nobody."""
    if name in SCRIPTS or name == "query":
        return SCRIPTS.get(name)
    folder = parts.locate(name, "policy")[0]
    return parts.chat_policy(folder, temperature=temperature)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--backbone", default="mini-turbo")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest tokens")
    parser.add_argument("--refinements", type=int, default=5)
    parser.add_argument("--window", type=float, nargs=2, help="default: the backbone's usual one")
    parser.add_argument("--shown", choices=("own", "nothing", "another's"), default="own")
    args = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = parts.backbone(args.backbone, torch.device("cpu"), torch.bfloat16).value
    asked = [query.text for query in queries(140, 7, held_out=False)]
    rewards = {name: reward_named(name) for name in ("oracle", "oracle-strict")}
    its = usual(args.backbone)
    window = tuple(args.window) if args.window else its.window
    way = Way(args.refinements, window, shown=args.shown, steps=its.steps, guidance=its.guidance)
    for name in args.policies:
        some = [policy_named(part, args.temperature) for part in name.split(",")]
        policy = some[0] if len(some) == 1 or some[0] is None or some[1] is None else First(some[0], some[1])
        made = measured(denoiser, policy, way, asked, rewards, seed=50_000, max_batch=140)
        soft, strict = made.scores["oracle"], made.scores["oracle-strict"]
        error = float(soft.std()) / len(asked) ** 0.5
        line = f"{name}: soft {soft.mean():.3f} +- {error:.3f}, strict {strict.mean():.3f}"
        if isinstance(policy, Mllm):
            told = sorted(first_drafts(policy, asked).items())
            line += "; first drafts " + ", ".join(f"{what} {share:.2f}" for what, share in told)
        print(line, flush=True)


if __name__ == "__main__":
    main()

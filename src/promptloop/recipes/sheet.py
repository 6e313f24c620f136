"""The sample sheet of a training run: one row per episode, with the query alone, drafts, estimates, image and
rewards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from promptloop.recipes.filmstrip import filmstrip
from promptloop.recipes.shot import Frame, Picture, Shot, noted, pixels
from promptloop.rollout import Geometry, Rollout

GROUPS = 2  # shown of an update
Alone = Callable[[Sequence[int]], tuple[Tensor, Tensor]]  # episodes -> images and rewards of their queries


def shot_of(made: Rollout, k: int, steps: int, base: Tensor, reward: float) -> Shot:
    """Episode k of a rollout of `steps` denoising steps, as the filmstrip shows it. It begins with `base`,
    the image of the query alone and its reward, under which the first prompt stands.
    """
    notes, frames = [], [Frame(0, pixels(base), f"the query alone: reward {reward:.3f}")]
    for draft in made.drafts[k]:
        step = round(draft.request.progress * steps)
        notes.append(noted(step, draft))
        if step == 0:  # nothing was to be seen yet
            continue
        if draft.request.estimate is not None:
            frames.append(Frame(step, pixels(draft.request.estimate)))
        else:
            frames.append(Frame(step, pixels(base * 0 + 0.9), f"step {step}: not shown to the policy"))
    picture = Picture(pixels(made.images[k]), tuple(frames), tuple(notes))
    return Shot(k, made.queries[k], made.seeds[k], picture)


def chosen(rewards: Tensor, group: int) -> list[tuple[int, str]]:
    """(episode, which it is): the best and the worst of the first groups; one of a group of equal rewards."""
    rows = []
    for g in range(min(GROUPS, len(rewards) // group)):
        its = rewards[g * group : (g + 1) * group]
        if its.max() == its.min():
            rows.append((g * group, f"one of the {group} samples of this query, whose rewards are equal"))
            continue
        best, worst = g * group + int(its.argmax()), g * group + int(its.argmin())
        rows += [(best, f"the best of the {group} samples of this query"),
                 (worst, f"the worst of the {group} samples of this query")]  # fmt: skip
    return rows


def write_sheet(run: Path, update: int, made: Rollout, geometry: Geometry, alone: Alone) -> Path:
    """`run/sheets/<update>.png` and `.json`. `alone` draws the queries of episodes as they are, from the
    episodes' own noise.
    """
    rows = chosen(made.rewards, geometry.group)
    bases, rewards = alone([k for k, _ in rows])
    strips = []
    for (k, which), base, reward in zip(rows, bases, rewards.tolist(), strict=True):
        shot = shot_of(made, k, geometry.denoising_steps, base, reward)
        strips.append(
            filmstrip(
                shot,
                f"reward {made.rewards[k]:.3f} ({float(made.rewards[k]) - reward:+.3f})",
                f"update {update}, query {k // geometry.group + 1} of {geometry.queries}: {which}",
            )
        )
    width, height = max(s.width for s in strips), sum(s.height for s in strips)
    page, y = Image.new("RGB", (width, height), (250, 249, 246)), 0
    for strip in strips:
        page.paste(strip, (0, y))
        y += strip.height
    file = run / "sheets" / f"{update:06d}.png"
    file.parent.mkdir(exist_ok=True)
    page.save(file)
    told = [
        {"query": made.queries[k], "which": which, "seed": made.seeds[k], "reward": float(made.rewards[k]),
         "reward_alone": reward,
         "drafts": [{"progress": d.request.progress, "answer": d.answer, "kept": d.kept}
                    for d in made.drafts[k]]}
        for (k, which), reward in zip(rows, rewards.tolist(), strict=True)
    ]  # fmt: skip
    file.with_suffix(".json").write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    return file

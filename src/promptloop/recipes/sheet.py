"""The sample sheet of a training run: one row per episode, with its query, drafts, estimates, image and
reward.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from promptloop.recipes.filmstrip import filmstrip
from promptloop.recipes.shot import Frame, Note, Picture, Shot, pixels
from promptloop.rollout import Rollout


def shots_of(made: Rollout, rows: Sequence[int], steps: int) -> list[Shot]:
    """The episodes `rows` of a rollout of `steps` denoising steps, as the filmstrip shows them."""
    shots = []
    for k in rows:
        notes, frames = [], []
        for draft in made.drafts[k]:
            step = round(draft.request.progress * steps)
            notes.append(Note(step, draft.request.prompt, draft.text, draft.answer, draft.kept,
                              len(draft.tokens), float(draft.log_probs.sum())))  # fmt: skip
            if draft.request.estimate is not None:
                frames.append(Frame(step, pixels(draft.request.estimate)))
            else:
                label = f"step {step}: no estimate shown" if step else "start: no estimate yet"
                frames.append(Frame(step, pixels(made.images[k] * 0 + 0.5), label))
        picture = Picture(pixels(made.images[k]), tuple(frames), tuple(notes))
        shots.append(Shot(k, made.queries[k], made.seeds[k], picture))
    return shots


def write_sheet(run: Path, update: int, made: Rollout, steps: int, group: int, count: int = 4) -> Path:
    """`run/sheets/<update>.png` and `.json`: the best and the worst episode of the first groups."""
    rows = []
    for g in range(min(count // 2, len(made.rewards) // group)):
        rewards = made.rewards[g * group : (g + 1) * group]
        rows += [g * group + int(rewards.argmax()), g * group + int(rewards.argmin())]
    shots = shots_of(made, rows, steps)
    strips = [filmstrip(shot, f"reward {made.rewards[k]:.3f}") for k, shot in zip(rows, shots, strict=True)]
    width, height = max(s.width for s in strips), sum(s.height for s in strips)
    page, y = Image.new("RGB", (width, height), (250, 249, 246)), 0
    for strip in strips:
        page.paste(strip, (0, y))
        y += strip.height
    file = run / "sheets" / f"{update:06d}.png"
    file.parent.mkdir(exist_ok=True)
    page.save(file)
    told = [
        {"query": made.queries[k], "seed": made.seeds[k], "reward": float(made.rewards[k]),
         "drafts": [{"progress": d.request.progress, "answer": d.answer, "kept": d.kept}
                    for d in made.drafts[k]]}
        for k in rows
    ]  # fmt: skip
    file.with_suffix(".json").write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    return file

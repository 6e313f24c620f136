"""The pictures of docs/world and docs/methods from the numbers committed beside them.

python benchmarks/plots.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[1] / "docs" / "world"
STEERING = FOLDER.parents[0] / "results" / "steering"
INK, FIRST, SECOND, GREY = "#222222", "#2a6f97", "#c8553d", "#8a8a8a"


def authority() -> None:
    """Readability of the estimate and authority of the prompt against the step, for each backbone."""
    files = sorted(FOLDER.glob("authority-*.json"))
    figure, axes = plt.subplots(1, len(files), figsize=(5.2 * len(files), 3.6), sharey=True, squeeze=False)
    for axis, file in zip(axes[0], files, strict=True):
        data = json.loads(file.read_text())
        for name, colour, label in (
            ("readable", FIRST, "estimate can be read"),
            ("authority", SECOND, "a new prompt still matters"),
        ):
            steps, values = [int(k) for k in data[name]], list(data[name].values())
            axis.plot(steps, values, color=colour, lw=2, marker="o", ms=3.5)
            place = len(values) - 1 if name == "readable" else 0
            axis.annotate(
                label,
                (steps[place], values[place]),
                xytext=(0, -14 if place else 8),
                textcoords="offset points",
                ha="right" if place else "left",
                fontsize=9,
                color=colour,
            )
        axis.set_title(file.stem.removeprefix("authority-"), color=INK, fontsize=11, loc="left")
        axis.set_xlabel("denoising steps done", color=INK)
        axis.set_ylim(-0.08, 1.12)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6")
    axes[0, 0].set_ylabel("share", color=INK)
    figure.tight_layout()
    figure.savefig(FOLDER / "authority.png", dpi=130)


def headroom() -> None:
    """Soft score of every arm with its interval, for each backbone."""
    files = sorted(FOLDER.glob("headroom-*.json"))
    arms = max(len(json.loads(file.read_text())["summary"]) for file in files)
    size = (6.0 * len(files), 1.0 + 0.32 * arms)
    figure, axes = plt.subplots(1, len(files), figsize=size, squeeze=False)
    for axis, file in zip(axes[0], files, strict=True):
        rows = json.loads(file.read_text())["summary"]
        for place, (name, row) in enumerate(reversed(rows.items())):
            colour = {"d": SECOND, "e": GREY}.get(name[0], FIRST)
            low, high = row["interval"]
            axis.plot([low, high], [place, place], color=colour, lw=2)
            axis.plot([row["soft"]], [place], "o", color=colour)
            axis.annotate(
                f"{row['soft']:.3f}",
                (row["soft"], place),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
        axis.set_yticks(range(len(rows)), list(reversed(rows)), fontsize=9)
        axis.set_ylim(-0.6, len(rows) - 0.3)
        axis.set_title(file.stem.removeprefix("headroom-"), color=INK, fontsize=11, loc="left")
        axis.set_xlabel("soft oracle score, held-out queries", color=INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", color="#e6e6e6")
    figure.tight_layout()
    figure.savefig(FOLDER / "headroom.png", dpi=130)


def steering() -> None:
    """Soft score of every method against its cost, once for each reward that steers."""
    rows = {file.stem: json.loads(file.read_text()) for file in STEERING.glob("*.json")}
    names = sorted({key.split("-preference-")[0] for key in rows if "-preference-" in key})
    colours = dict(zip(names, map(plt.get_cmap("tab10"), range(10)), strict=False))
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), sharey=True)
    for axis, reward in zip(axes, ("oracle", "preference"), strict=True):
        for name, colour in colours.items():
            keys = [key for key in rows if key.startswith(f"{name}-{reward}-")]
            line = sorted(mean_at(rows[key]) for key in keys if not key.endswith("-policy"))
            paired = [mean_at(rows[key]) for key in keys if key.endswith("-policy")]
            if line:
                axis.plot(*zip(*line, strict=True), color=colour, lw=1.8, marker="o", ms=4, label=name)
            if paired:
                axis.plot(*zip(*paired, strict=True), "*", color=colour, ms=11)
        for key, label in (("base", "the query alone"), ("policy", "PromptLoop")):
            cost, soft = mean_at(rows[key])
            axis.axhline(soft, color=GREY, lw=1, ls=":")
            axis.plot([cost], [soft], "s", color=INK, ms=5)
            place = {"xytext": (6, 5), "textcoords": "offset points", "color": INK, "fontsize": 9}
            axis.annotate(label, (cost, soft), **place)
        what = "Steered by the oracle itself" if reward == "oracle" else "Steered by the learned reward"
        axis.set_title(f"{what} (stars: behind PromptLoop)", color=INK, fontsize=11, loc="left")
        axis.set_xscale("log", base=2)
        axis.set_xlim(7, 150)
        axis.set_xticks([8, 16, 32, 64, 128], ["8", "16", "32", "64", "128"])
        axis.set_xlabel("evaluations of the denoiser for an image", color=INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#ececec")
    axes[0].set_ylabel("soft oracle score, held-out queries", color=INK)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="lower center", ncol=9, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(FOLDER.parents[0] / "methods" / "steering.png", dpi=110)


def mean_at(row: dict) -> tuple[float, float]:
    """(evaluations, mean soft score) of a row."""
    scores = row["scores"]["oracle"]
    return row["cost"]["denoiser calls"], sum(map(sum, scores)) / sum(map(len, scores))


if __name__ == "__main__":
    if (STEERING / "base.json").exists():
        steering()
    if list(FOLDER.glob("authority-*.json")):
        authority()
    if list(FOLDER.glob("headroom-*.json")):
        headroom()

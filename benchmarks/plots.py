"""The pictures of docs/world from the numbers beside them.

python benchmarks/plots.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[1] / "docs" / "world"
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


if __name__ == "__main__":
    if list(FOLDER.glob("authority-*.json")):
        authority()
    if list(FOLDER.glob("headroom-*.json")):
        headroom()

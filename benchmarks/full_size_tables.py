"""The report of benchmarks/full_size.py as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers with three significant digits, None as a dash."""
    lines = [head, ["---"] * len(head), *[[cell(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def rows_of(rows: Sequence[dict[str, Any]], batch: int) -> str:
    """Seconds for an image, and the ratio to the same without a refinement."""
    head = ["refinements", "loop", "s / image", "ratio", "policy s / image", "peak GiB", "rounds"]
    body = []
    for row in rows:
        kind = f"{row['loop']}, {row['delay']} steps late, in the background" if row["delay"] else row["loop"]
        told = None if row["policy seconds"] is None else row["policy seconds"] / batch
        body.append([row["refinements"], kind if row["refinements"] else "-", row["seconds"] / batch,
                     f"{row['ratio']:.3f}", told, row["peak GiB"], row["rounds"]])  # fmt: skip
    return table(head, body)


def parts_of(parts: Sequence[dict[str, Any]]) -> str:
    head = ["for a batch", "operations", "ms", "arithmetic floor, ms", "reading floor, ms", "over floor"]
    body = [
        [part["phase"], float(part["operations"]), 1e3 * part["seconds"], 1e3 * part["arithmetic floor"],
         1e3 * part["reading floor"], part["over floor"]] for part in parts]  # fmt: skip
    return table(head, body)


def training_of(grpo: dict[str, Any]) -> str:
    head = ["s / episode", "ours", "share", "naive", "ratio", "arithmetic floor", "over floor"]
    body = []
    for row in grpo["phases"]:
        some, floor = row["ours"] > 1e-6, row["floor"]
        body.append([row["phase"], row["ours"], f"{row['share']:.2f}", row["naive"],
                     row["naive"] / row["ours"] if some else None, floor,
                     row["ours"] / floor if some and floor else None])  # fmt: skip
    ours = 1 / grpo["episodes a second"]
    body.append(["all", ours, "1.00", 1 / grpo["naive"], grpo["ratio"], grpo["floor"], ours / grpo["floor"]])
    return table(head, body)


def markdown(report: dict[str, Any]) -> str:
    """All tables that there are figures for."""
    its, rates = report["machine"], report["rates"]
    text = [
        f"{its['device']}, torch {its['torch']}, {its['threads']} CPU threads, size {report['size']}, "
        f"{report['dtype']}, batch {report['batch']}, {report['tokens']} tokens a draft; measured "
        f"{rates['matrix'] / 1e12:.3g} T operations and {rates['memory'] / 1e9:.3g} GB a second."
    ]
    for name, found in report["backbones"].items():
        text += [f"{name}, {found['steps']} steps:", rows_of(found["rows"], report["batch"]),
                 parts_of(found["parts"])]  # fmt: skip
    if report["grpo"]:
        updates = f"medians of {report['grpo']['repeats']} updates"
        text += [f"GRPO on sdxl, eight unguided steps, five refinements, {updates}:",
                 training_of(report["grpo"])]  # fmt: skip
    return "\n\n".join(part.rstrip() for part in text) + "\n"

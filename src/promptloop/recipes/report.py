"""What the terminal shows after a run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from promptloop.recipes.generate import Generated
from promptloop.recipes.shot import Shot, mean_score


def summary(made: Generated) -> str:
    """Where the files are, the scores or why there are none, and how often an answer was not used."""
    images = sum(len(shot.files()) for shot in made.shots)
    lines = [f"{images} images, {len(made.shots)} filmstrips, trace.html and trace.json in {made.out}"]
    refined, base = ([getattr(shot, side) for shot in made.shots] for side in ("picture", "base"))
    for name, row in (
        (
            "refined"
            if made.trace["refinement_steps"]
            else "steered"
            if made.trace["job"]["control"]
            else "images",
            refined,
        ),
        ("query alone", base),
    ):
        if found := mean_score(row):
            lines.append(f"{name}: soft {found[0]:.2f}, strict {found[1]:.2f}")
    lines += [
        f"not scored: {why}"
        for why in dict.fromkeys(entry["not_scored"] for entry in made.trace["samples"])
        if why
    ]
    lines += [cut_sentence(query, *counts) for query, counts in made.trace["cut_queries"].items()]
    refused = [
        note.kept for shot in made.shots for note in shot.picture.notes if note.kept not in (None, "same")
    ]
    if refused:
        kinds = ", ".join(f"{refused.count(kind)} {kind}" for kind in dict.fromkeys(refused))
        lines.append(f"answers that could not be used, so the prompt in force stayed: {kinds}")
    return "\n".join(lines)


def cut_sentence(query: str, tokens: int, limit: int) -> str:
    """What a user must know of a query that the text encoder does not read to its end."""
    return (
        f"the text encoder reads {limit} tokens, this query has {tokens}, so its end is not seen without a "
        f"policy that shortens it: {query!r}"
    )


def table(made: Generated) -> Table:
    """Query by query: soft and strict of the query alone and of the refined images."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("query", overflow="fold")
    for head in ("soft alone", "refined", "strict alone", "refined"):
        shown.add_column(head, justify="right")
    by_query: dict[str, list[Shot]] = {}
    for shot in made.shots:
        by_query.setdefault(shot.query, []).append(shot)
    for query, shots in by_query.items():
        shown.add_row(query, *cells(shots))
    shown.add_section()
    shown.add_row("mean", *cells(made.shots), style="bold")
    return shown


def cells(shots: Sequence[Shot]) -> list[str]:
    base, refined = mean_score([shot.base for shot in shots]), mean_score([shot.picture for shot in shots])
    return ["-" if row is None else f"{row[k]:.2f}" for k in (0, 1) for row in (base, refined)]

"""trace.html: the run as one page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import Any

from PIL import Image

from promptloop.recipes.shot import Note, Picture, Pixels, Score, Shot, mean_score

PHASES = {
    "load": "loading",
    "policy": "writing prompts",
    "denoise": "denoising",
    "decode": "decoding",
    "loop": "the loop",
    "score": "scoring",
    "write": "writing files",
}
COLOURS = ("var(--faint)", "var(--b)", "var(--a)", "var(--c)", "var(--rule)", "var(--d)", "var(--e)")


def page(shots: Sequence[Shot], trace: dict[str, Any]) -> str:
    """The whole page; all texts are escaped, all images inline."""
    style = files("promptloop.recipes").joinpath("page.css").read_text(encoding="utf-8")
    queries = trace["job"]["queries"]
    title = queries[0] if len(queries) == 1 else f"{len(queries)} queries"
    body = [
        f'<header><p class="mark">promptloop</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{lead(shots, trace)}</p></header>',
        *(['<p class="fine pairs">Left the query alone, right refined.</p>'] if shots[0].base else []),
        f'<nav class="sheet" aria-label="samples">{"".join(thumbnail(shot) for shot in shots)}</nav>',
        *(section(shot, entry["not_scored"]) for shot, entry in zip(shots, trace["samples"], strict=True)),
        f"<footer>{times(trace['seconds'])}{settings(trace)}</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} | promptloop</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def lead(shots: Sequence[Shot], trace: dict[str, Any]) -> str:
    """What was run, in two sentences."""
    job, policy = trace["job"], trace["policy"]
    count = f"{many(len(shots), 'image')} of {job['steps']} steps on <b>{name_of(trace['backbone'])}</b>"
    if policy is None:
        text = f"{count}, from the query alone."
    else:
        seen = "without looking" if job["open_loop"] else "looking at the estimate"
        text = (
            f"{count}; <b>{name_of(policy)}</b> wrote the prompt {many(job['refinements'], 'time')}, {seen}."
        )
    if job["control"]:
        text += f" Steered by <b>{escape('; '.join(job['control']))}</b>."
    refined, base = (mean_score([getattr(shot, side) for shot in shots]) for side in ("picture", "base"))
    if refined:
        text += f" Oracle: soft <b>{refined[0]:.2f}</b>, strict <b>{refined[1]:.2f}</b>"
        text += f"; the query alone has {base[0]:.2f} and {base[1]:.2f}." if base else "."
    return text


def many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def name_of(part: dict[str, Any]) -> str:
    return escape(str(part["name"]))


# --- one sample


def thumbnail(shot: Shot) -> str:
    pictures = [shot.picture] if shot.base is None else [shot.base, shot.picture]
    images = "".join(img(picture.image, 256, "") for picture in pictures)
    soft = " to ".join(f"{picture.score.soft:.2f}" for picture in pictures if picture.score)
    return (
        f'<a href="#s{shot.name}"><div class="pair">{images}</div><span>{escape(shot.query)}'
        f'<small class="fine"> seed {shot.seed}{", " + soft if soft else ""}</small></span></a>'
    )


def section(shot: Shot, unscored: str | None) -> str:
    note = f" · not scored: {unscored}" if unscored else ""
    head = f"<h2>{escape(shot.query)}</h2><small>sample {shot.name} · seed {shot.seed}{escape(note)}</small>"
    parts = [f'<section class="shot" id="s{shot.name}"><div class="name">{head}</div>']
    above, below = (escape(title[0].upper() + title[1:]) for title in shot.titles)
    if shot.base is not None:
        parts.append(f"<h3>{above}</h3>")
    parts.append(strip(shot.picture))
    if shot.base is not None:
        parts.append(f"<h3>{below}</h3>" + strip(shot.base))
    if shot.picture.notes:
        parts.append(answers(shot.picture.notes))
    return "".join(parts) + "</section>"


def strip(picture: Picture) -> str:
    cards = []
    for frame in picture.frames:
        note = picture.note_at(frame.step)
        when = "start: noise" if frame.step == 0 else f"after step {frame.step}"
        caption = f"<figcaption>{changes(note)}{kept(note)}</figcaption>" if note else ""
        cards.append(f'<figure><div class="when">{when}</div>{img(frame.image, 320, when)}{caption}</figure>')
    last = img(picture.image, 640, "the finished image")
    cards.append(
        f'<figure class="final"><div class="when">final</div>{last}{verdict(picture.score)}</figure>'
    )
    return f'<div class="strip" tabindex="0" role="group" aria-label="estimates">{"".join(cards)}</div>'


def changes(note: Note) -> str:
    """The prompt with what is new marked, and what went struck out while that is little."""
    words = note.changes()
    if sum(kind == "gone" for kind, _ in words) > 3:
        words = [(kind, word) for kind, word in words if kind != "gone"]
    tags = {"same": "{}", "new": "<ins>{}</ins>", "gone": "<del>{}</del>"}
    runs = groupby(words, key=lambda change: change[0])
    return " ".join(tags[kind].format(escape(" ".join(word for _, word in run))) for kind, run in runs)


def kept(note: Note) -> str:
    if note.kept is None:
        return ""
    reason = "kept" if note.kept == "same" else f"kept: the answer was {note.kept}"
    return f'<span class="kept">{reason}</span>'


def verdict(score: Score | None) -> str:
    if score is None:
        return ""
    word, kind = ("yes", "good") if score.strict else ("no", "bad")
    rows = "".join(
        f'<li class="{"no" if value < 0.5 else "yes"}">{escape(text)} {value:.2f}</li>'
        for text, value in score.clauses
    )
    return (
        f'<figcaption><span class="verdict {kind}">soft {score.soft:.2f} · strict {word}</span>'
        f'<ul class="clauses">{rows}</ul></figcaption>'
    )


def answers(notes: Sequence[Note]) -> str:
    """What the policy said, word for word."""
    rows = "".join(
        f'<tr><td class="n">{note.step}</td><td><code>{escape(note.answer)}</code></td>'
        f'<td class="n">{note.tokens}</td><td class="n">{note.log_prob:.2f}</td></tr>'
        for note in notes
    )
    n = '<th class="n">'
    head = f"<tr>{n}step</th><th>answer</th>{n}tokens</th>{n}log-prob</th></tr>"
    summary = "<summary>The policy's answers, word for word</summary>"
    return f"<details>{summary}<table>{head}{rows}</table></details>"


# --- below the samples


def times(seconds: dict[str, float]) -> str:
    total = sum(seconds.values()) or 1.0
    rows = [(PHASES[p], seconds[p], c) for p, c in zip(PHASES, COLOURS, strict=True) if seconds.get(p)]
    bar = "".join(f'<div style="width:{100 * s / total:.2f}%;background:{c}"></div>' for _, s, c in rows)
    legend = "".join(f'<span><i style="background:{c}"></i>{name} {s:.2f} s</span>' for name, s, c in rows)
    return f'<h2>Where the time went</h2><div class="bar">{bar}</div><div class="legend">{legend}</div>'


def settings(trace: dict[str, Any]) -> str:
    """The job, the weights and the environment: what a replay needs."""
    job = {key: value for key, value in trace["job"].items() if key != "queries"}
    loaded = {role: trace[role] for role in ("backbone", "policy") if trace[role]}
    weights = {
        role: f"{part['class']}, {part['sha256'] or 'not from files here'}" for role, part in loaded.items()
    }
    weights["solver"] = trace["backbone"]["solver"]
    left = f"<h3>Settings</h3>{rows_of(job)}"
    right = f"<h3>Weights (sha256)</h3>{rows_of(weights)}<h3>Environment</h3>{rows_of(trace['environment'])}"
    again = (
        "<p class='fine'>The same images again, bit for bit: <code>promptloop replay trace.json</code></p>"
    )
    return f'<div class="columns"><div>{left}{again}</div><div>{right}</div></div>'


def rows_of(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(key.replace('_', ' '))}</th><td><code>{escape(str(value))}</code></td></tr>"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>"


def img(image: Pixels, side: int, alt: str) -> str:
    """An inline image; pixel art whole, photographs no larger than `side` and as JPEG."""
    picture, stream = Image.fromarray(image), io.BytesIO()
    small = max(picture.size) <= 128
    if small:
        picture.save(stream, "PNG")
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.save(stream, "JPEG", quality=90)
    data = base64.b64encode(stream.getvalue()).decode()
    kind, form = ('class="pixel" ', "png") if small else ("", "jpeg")
    style = f'style="--ratio:{image.shape[1]}/{image.shape[0]}"'
    return f'<img {kind}{style} alt="{escape(alt)}" src="data:image/{form};base64,{data}">'

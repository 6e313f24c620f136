"""The filmstrip: estimates with the prompt written at each, the finished image last; base below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

from PIL import Image, ImageDraw, ImageFont

from promptloop.recipes.shot import Picture, Pixels, Score, Shot

TILE, GAP, MARGIN = 256, 20, 36
LINE, TEXT, LABEL, TITLE = 23, 17, 15, 30
PER_ROW = 7
PAPER, INK, FAINT, RULE = (250, 249, 246), (28, 29, 33), (128, 128, 134), (222, 220, 213)
ACCENT, GOOD, BAD = (190, 66, 22), (24, 120, 70), (165, 40, 40)
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Word = tuple[str, bool]  # a word, and whether it is new at this refinement


@final
@dataclass(frozen=True, eq=False)
class Panel:
    """One tile: the image, the label above it, the words below it, and a verdict where it is graded."""

    label: str
    image: Pixels
    words: tuple[Word, ...] = ()
    remark: str = ""
    score: Score | None = None
    final: bool = False


def filmstrip(shot: Shot, verdict: str = "", about: str = "") -> Image.Image:
    """The strip of one sample as an RGB picture; `verdict` stands below its finished image, `about` below the
    query (else the sample's number and seed).
    """
    above, below = shot.titles
    rows = [(above, panels(shot.picture, verdict))]
    if shot.base is not None:
        rows.append((f"base: {below}", panels(shot.base)))
    chunks = [
        (name if k == 0 else "", row[k : k + PER_ROW])
        for name, row in rows
        for k in range(0, len(row), PER_ROW)
    ]
    columns = max(len(row) for _, row in chunks)
    width = 2 * MARGIN + columns * TILE + (columns - 1) * GAP
    title = wrap([(word, False) for word in shot.query.split()], width - 2 * MARGIN, TITLE)
    top = MARGIN + len(title) * (TITLE + 8) + 36
    heights = [row_height(row, bool(name)) for name, row in chunks]
    canvas = Image.new("RGB", (width, top + sum(heights) + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(canvas)
    write(draw, (MARGIN, MARGIN - 6), title, TITLE, TITLE + 8, INK, INK)
    plain(draw, (MARGIN, top - 38), about or f"sample {shot.name}   seed {shot.seed}", LABEL, FAINT)
    y = top
    for (name, row), height in zip(chunks, heights, strict=True):
        if name:
            draw.line((MARGIN, y, width - MARGIN, y), fill=RULE, width=1)
            plain(draw, (MARGIN, y + 10), name, TEXT, INK)
        for k, panel in enumerate(row):
            paint(canvas, draw, panel, (MARGIN + k * (TILE + GAP), y + (44 if name else 12)))
        y += height
    return canvas


def panels(picture: Picture, verdict: str = "") -> list[Panel]:
    """The frames of a picture and, last, the picture itself."""
    row = []
    for frame in picture.frames:
        note = picture.note_at(frame.step)
        label = frame.label or ("start: noise" if frame.step == 0 else f"after step {frame.step}")
        changes = note.changes() if note else []
        words = tuple((word, kind == "new") for kind, word in changes if kind != "gone")
        if words and frame.label:  # what is seen was not made by them
            words = (("written:", False), *words)
        kept = {None: "", "same": "kept"}.get(note.kept, f"kept: the answer was {note.kept}") if note else ""
        row.append(Panel(label, frame.image, words, kept))
    row.append(Panel("final", picture.image, (), verdict, picture.score, final=True))
    return row


def upscale(image: Pixels, side: int = TILE) -> Image.Image:
    """The image inside side x side: pixel art by whole factors (nearest), photographs smoothly."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest <= side // 2:
        factor = side // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    scale = side / longest
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


# --- laying out text


@cache
def font(size: int, foreign: bool = False) -> Font:
    """Pillow's own scalable font; for letters it lacks, a system font where there is one."""
    if foreign:
        for name in ("DejaVuSans.ttf", "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "arial.ttf"):
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size=size)


def fit(text: str, size: int) -> Font:
    return font(size, not text.isascii())


def width_of(text: str, size: int) -> float:
    return fit(text, size).getlength(text)


def wrap(words: Sequence[Word], width: int, size: int) -> list[list[Word]]:
    """Words in lines no wider than `width` pixels; a word longer than a line is broken."""
    lines: list[list[Word]] = [[]]
    room, space = float(width), width_of(" ", size)
    for word, new in words:
        while width_of(word, size) > width:
            cut = next(k for k in range(len(word), 0, -1) if k == 1 or width_of(word[:k], size) <= width)
            if cut == len(word):
                break
            lines += [[(word[:cut], new)]] if lines[-1] else []
            lines[-1] = [(word[:cut], new)]
            lines.append([])
            word, room = word[cut:], float(width)
        needed = width_of(word, size) + (space if lines[-1] else 0)
        if lines[-1] and needed > room:
            lines.append([])
            room, needed = float(width), width_of(word, size)
        lines[-1].append((word, new))
        room -= needed
    return [line for line in lines if line] or [[]]


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    lines: Sequence[Sequence[Word]],
    size: int,
    pitch: int,
    ink: Colour,
    accent: Colour,
) -> float:
    """Draws lines of words, new ones in the accent colour; returns the y below them."""
    x, y = at
    for line in lines:
        here = x
        for word, new in line:
            plain(draw, (here, y), word, size, accent if new else ink)
            here += width_of(word, size) + width_of(" ", size)
        y += pitch
    return y


def plain(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, ink: Colour) -> None:
    draw.text(at, text, font=fit(text, size), fill=ink)


# --- one tile


def row_height(row: Sequence[Panel], named: bool) -> int:
    """Pixels from the top of a row to the top of the next."""
    return (44 if named else 12) + 24 + TILE + 12 + max(words_height(panel) for panel in row) + 18


def words_height(panel: Panel) -> int:
    lines = len(wrap(panel.words, TILE, TEXT)) if panel.words else 0
    reasons = sum(len(line) for line in wrong_lines(panel.score))
    return lines * LINE + (LINE if panel.remark else 0) + (LINE + 6 if panel.score else 0) + reasons * 20


def wrong_lines(score: Score | None) -> list[list[list[Word]]]:
    wrong = score.wrong if score else []
    return [wrap([(word, False) for word in f"not: {clause}".split()], TILE, LABEL) for clause in wrong]


def paint(canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, at: tuple[int, int]) -> None:
    """One tile with its label above and its words below."""
    x, y = at
    plain(draw, (x, y), panel.label, LABEL, INK if panel.final else FAINT)
    y += 24
    tile = upscale(panel.image)
    left, up = x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2
    canvas.paste(tile, (left, up))
    edge = 2 if panel.final else 1
    frame = (left - edge, up - edge, left + tile.width + edge - 1, up + tile.height + edge - 1)
    draw.rectangle(frame, outline=INK if panel.final else RULE, width=edge)
    y += TILE + 12
    if panel.words:
        y = int(write(draw, (x, y), wrap(panel.words, TILE, TEXT), TEXT, LINE, INK, ACCENT))
    if panel.remark:
        plain(draw, (x, y), panel.remark, LABEL, FAINT)
        y += LINE
    if panel.score:
        verdict = f"soft {panel.score.soft:.2f} · strict {'yes' if panel.score.strict else 'no'}"
        plain(draw, (x, y), verdict, TEXT, GOOD if panel.score.strict else BAD)
        y += LINE + 6
        for lines in wrong_lines(panel.score):
            y = int(write(draw, (x, y), lines, LABEL, 20, FAINT, FAINT))

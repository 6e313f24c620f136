"""Prompt sets: what a policy is trained on, from a file or from `datasets`, and in which order."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import torch

from promptloop.names import HUB_ID, first_line, nearest
from promptloop.rollout import derived

KINDS = (".txt", ".jsonl", ".csv", ".parquet")
USUAL = "prompt"  # the column that is taken where none is named


@final
@dataclass(frozen=True)
class Prompts:
    """Distinct texts in one line each, and what was left out on the way (reason -> how many).

    Every pass goes over all of them in an order of its own, a function of the seed and the pass; so an
    update's queries are a function of its number, and a resumed run asks what an uninterrupted one would.
    """

    source: str
    texts: tuple[str, ...]
    left_out: tuple[tuple[str, int], ...] = ()
    seed: int = 0

    def of(self, update: int, count: int) -> list[str]:
        """The `count` queries of an update, counted from 0."""
        size = len(self.texts)
        places = (divmod(k, size) for k in range(update * count, (update + 1) * count))
        return [self.texts[order(size, self.seed, turn)[place]] for turn, place in places]

    def without(self, reason: str, wanted: Callable[[str], bool]) -> Prompts:
        """Those that are `wanted`."""
        kept = tuple(text for text in self.texts if wanted(text))
        lost = len(self.texts) - len(kept)
        return replace(self, texts=kept, left_out=(*self.left_out, (reason, lost)) if lost else self.left_out)

    def told(self) -> str:
        """The counts, in one sentence."""
        lost = ", ".join(f"{count} {reason}" for reason, count in self.left_out)
        read = len(self.texts) + sum(count for _, count in self.left_out)
        return f"{read} prompts in {self.source}: {len(self.texts)} are used" + (f"; {lost}" if lost else "")

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def order(size: int, seed: int, turn: int) -> list[int]:
    """The order of pass number `turn`."""
    rng = torch.Generator().manual_seed(derived(seed, "prompts", turn))
    return torch.randperm(size, generator=rng).tolist()


def prompts_from(
    source: str,
    *,
    column: str | None = None,
    split: str = "train",
    chars: tuple[int, int] = (1, 1000),
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Prompts:
    """The distinct prompts in `source`, in its order, with white space made single spaces.

    source: a .txt (a prompt a line), .jsonl, .csv or .parquet file, or a folder or id for `datasets`, of
        which `split` is read. column: where the prompt is (None: "prompt", or the only column there is).
    chars: how long a prompt may be, in characters. `say` is told the counts.
    ValueError naming the file, line and column: it is not there, cannot be read, or no prompt is left.
    """
    if not 0 < chars[0] <= chars[1]:
        raise ValueError(f"the prompts' characters are {chars}; give the least and the most, from 1")
    counts: Counter[str] = Counter()
    kept: dict[str, None] = {}
    if say is not None and Path(source).suffix == ".txt" and column is not None:
        say(f"{source} has no columns; prompt_column {column!r} is not used")
    if say is not None and Path(source).suffix in KINDS and split != "train":
        say(f"{source} is a file without splits; prompt_split {split!r} is not used")
    for text in rows_of(source, column, split):
        line = " ".join(text.split())
        reason = (
            "empty" if not line
            else "said before" if line in kept
            else f"shorter than {chars[0]} characters" if len(line) < chars[0]
            else f"longer than {chars[1]} characters" if len(line) > chars[1]
            else ""
        )  # fmt: skip
        if reason:
            counts[reason] += 1
        else:
            kept[line] = None
    made = Prompts(source, tuple(kept), tuple(counts.items()), seed)
    if not kept:
        raise ValueError(f"no prompt is left to train on: {made.told()}")
    if say is not None:
        say(made.told())
    return made


def rows_of(source: str, column: str | None, split: str) -> Iterator[str]:
    """The prompts as they stand in the source."""
    if not source.strip():
        raise ValueError(f"prompts is empty; give a file ({', '.join(KINDS)}) or the id of a data set")
    file = Path(source).expanduser()
    if file.is_file():
        if file.suffix not in KINDS:
            raise ValueError(f"{source}: {nearest(file.suffix, KINDS, 'prompts are read from')}")
        if file.suffix == ".parquet":
            return from_parquet(file, column)
        kinds = {".txt": lambda: lines_of(file), ".jsonl": lambda: from_jsonl(file, column),
                 ".csv": lambda: from_csv(file, column)}  # fmt: skip
        return kinds[file.suffix]()
    if file.is_dir() or (HUB_ID.fullmatch(source) and file.suffix not in KINDS):
        return from_datasets(source, column, split)
    raise ValueError(f"no prompts {source!r}: give a file ({', '.join(KINDS)}) or the id of a data set")


def lines_of(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}, line {number} is not UTF-8: {error.reason}") from None


def from_jsonl(file: Path, column: str | None) -> Iterator[str]:
    for number, line in enumerate(lines_of(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} is a {type(row).__name__}; give an object with a prompt in each line")
        column = the_column(column, list(row), where)  # the first line's is that of all
        yield text_of(row[column], where)


def from_csv(file: Path, column: str | None) -> Iterator[str]:
    rows = csv.reader(lines_of(file), strict=True)
    try:
        header = next(rows, [])
        if column is None and len(header) == 1 and header != [USUAL]:
            raise ValueError(
                f"{file} begins with {header[0]!r}: if that is a prompt, put a line {USUAL!r} above it; "
                "if it is the column's name, give it as --prompt-column; columns are divided by commas"
            )
        place = header.index(the_column(column, header, str(file)))
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(
                    f"{file}, line {rows.line_num} has {len(row)} columns, not {len(header)}: "
                    "is a text with a comma or a quote not quoted?"
                )
            yield row[place] if row else ""
    except csv.Error as error:
        raise ValueError(f"{file}, line {rows.line_num} is not CSV: {error}") from None


def from_parquet(file: Path, column: str | None) -> Iterator[str]:
    needs("pyarrow", "Parquet files")
    from pyarrow import ArrowException, parquet

    try:
        name = the_column(column, parquet.read_schema(file).names, str(file))
        rows = parquet.read_table(file, columns=[name]).column(name).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {first_line(error)}") from error
    return (text_of(row, f"{file}, row {k}") for k, row in enumerate(rows, start=1))


def from_datasets(source: str, column: str | None, split: str) -> Iterator[str]:
    needs("datasets", "data sets")
    from datasets import load_dataset

    try:
        rows: Any = load_dataset(source, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # its own errors are of these kinds
        why = first_line(error)
        raise ValueError(f"the data set {source} (split {split}) cannot be read: {why}") from error
    name = the_column(column, rows.column_names, f"{source} (split {split})")
    texts = rows.select_columns([name])[name]  # pictures beside them stay where they are
    return (text_of(row, f"{source}, row {k}") for k, row in enumerate(texts, start=1))


def the_column(column: str | None, names: Sequence[str], where: str) -> str:
    """`column`, or what stands for it where none was named; ValueError with the nearest."""
    if column is None:
        if USUAL in names or len(names) == 1:
            return USUAL if USUAL in names else names[0]
        there = ", ".join(names) or "(none)"
        raise ValueError(f"{where} has the columns {there}; say which by --prompt-column")
    if column not in names:
        raise ValueError(f"{where} has no column {column!r}; {nearest(column, names, 'columns')}")
    return column


def text_of(value: Any, where: str) -> str:
    """ "" for a missing one; ValueError for what is no text."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: the prompt is {reprlib.repr(value)}, which is no text; put it in quotes")
    return value or ""


def needs(package: str, what: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"{what} need the package {package}: pip install promptloop[data]")

"""Lists of images: .csv and .jsonl files with a column for each thing that is told of one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def rows(file: Path, *columns: str) -> list[Mapping[str, Any]]:
    """The rows of a .csv or .jsonl, each with a text in every one of `columns`; ValueError naming the row."""
    if file.suffix == ".csv":
        try:
            read: list[Mapping[str, Any]] = [*csv.DictReader(io.StringIO(text_of(file), newline=""))]
        except csv.Error as error:
            raise ValueError(f"{file} cannot be read as CSV: {error}") from error
    else:
        read = objects(file, " and ".join(columns))
    for k, row in enumerate(read, 1):
        if None in row:
            raise ValueError(f"row {k} of {file} has more cells than there are columns; put a prompt with a "
                             "comma in double quotes")  # fmt: skip
        for column in columns:
            if not isinstance(row.get(column), str) or not row[column].strip():
                there = ", ".join(str(name) for name in row) or "none"
                raise ValueError(f"row {k} of {file} has no {column!r}; its columns are {there}")
    if not read:
        raise ValueError(f"{file} has no row; its columns are {' and '.join(columns)}")
    return read


def objects(file: Path, wanted: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for k, line in enumerate(text_of(file).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {k} of {file} is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {k} of {file} is no object with {wanted}")
            found.append(row)
    return found


def file_at(path: Path, named_by: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{named_by} names {path}, which is no file")
    return path


def text_of(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error.reason})") from error

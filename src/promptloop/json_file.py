"""JSON files of other people: read, or named in the error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(file: Path) -> Any:
    """What the file holds; ValueError naming it where it is no JSON in UTF-8."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}): copy or download it again") from None


def read_object(file: Path) -> dict[str, Any]:
    """The object that the file holds; ValueError naming it where it is another thing, or damaged."""
    found = read(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, where an object is wanted")
    return found


def readable(*folders: str | Path) -> None:
    """ValueError for the first JSON file of models' folders that is damaged; hub ids are passed over.

    Libraries pass over some of them in silence (transformers over generation_config.json), and name none.
    """
    for folder in folders:
        for file in sorted(Path(folder).glob("*.json")):
            read(file)

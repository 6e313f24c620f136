"""Where a command may write."""

from __future__ import annotations

import os
from pathlib import Path


def writable(out: Path) -> Path:
    """`out`, if it is a folder that can be written to or made (nothing is changed yet); else ValueError."""
    nearest = next(place for place in (out, *out.absolute().parents) if place.exists())
    if nearest == out and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder")
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"{out} cannot be written to: {nearest} is not a folder of yours")
    return out

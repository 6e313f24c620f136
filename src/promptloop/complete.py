"""Whether weights were read in whole: the report of the library that read them, as one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHOWN = 3  # names said before "..."


def complete(folder: str | Path, report: Mapping[str, Any]) -> None:
    """ValueError where tensors of a network were not in the folder, which the library then made up, or have
    other sizes there; a warning of those in it that the network has no place for.

    `report` is what transformers and diffusers give with `output_loading_info`; tied weights are not missing.
    """
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} of the network's tensors ({some(missing)}); "
                         "copy or download the folder again")  # fmt: skip
    if odd := sorted(name for name, *_ in report["mismatched_keys"]):
        raise ValueError(f"{folder} has {len(odd)} tensors of another size than its config.json says "
                         f"({some(odd)}); copy or download the folder again")  # fmt: skip
    if surplus := sorted(report["unexpected_keys"]):
        warnings.warn(f"{folder} has {len(surplus)} tensors that its network has no place for "
                      f"({some(surplus)}); they are not used", stacklevel=2)  # fmt: skip


def some(names: list[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")

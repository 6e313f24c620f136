"""Names: one of the known ones, or the nearest to it in the error; hub ids; what peft calls things."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # "owner/name"
LORA_CONFIG = "adapter_config.json"  # peft's name for a LoRA's settings
LORA_PREFIX = "base_model.model."  # what peft puts before every weight's name


def one_of(name: str, known: Iterable[str], kind: str) -> str:
    """`name`, where it is known; ValueError with the nearest where it is not."""
    names = list(known)
    if name in names:
        return name
    raise ValueError(f"unknown {kind} {name!r}; {nearest(name, names)}")


def nearest(name: str, known: Iterable[str], several: str = "known") -> str:
    """What to say beside an unknown name: the nearest, or all of them where none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{several}: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where it says nothing.

    A first line that ends in a colon is nothing without the second.
    """
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if more and first.rstrip().endswith(":") else first

"""Names: one of the known ones, or the nearest to it in the error; what Python made; hub ids, servers; what
peft calls things.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # "owner/name"
DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # "package.module:name"
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


def imported(name: str, role: str) -> Any:
    """What "package.module:name" stands for; ValueError where it cannot be imported."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{role} {name!r} cannot be imported: {error}") from error


def is_server(name: str) -> bool:
    """Whether a name is a server's address."""
    return name.lower().startswith(("http://", "https://"))


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where it says nothing.

    A first line that ends in a colon is nothing without the second.
    """
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if more and first.rstrip().endswith(":") else first

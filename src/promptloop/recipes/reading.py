"""Settings from names and texts. Nothing heavy is imported before all names are known to be right."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from promptloop.names import nearest, one_of

S = TypeVar("S")
LARGEST = 2**32 - 1  # of whole numbers: what a seed may be


def settings_class(make: Callable[..., Any]) -> Any:
    """The settings dataclass itself, or the one that a function with its own defaults returns."""
    return make if isinstance(make, type) else typing.get_type_hints(make)["return"]


def check_names(make: Callable[..., Any], names: Iterable[str]) -> Any:
    """The settings' class, if all are its fields; ValueError with the nearest field for one that is none."""
    kind = settings_class(make)
    known = sorted(f.name for f in fields(kind))
    for name in names:
        one_of(name, known, "setting")
    return kind


def settings_from(make: Callable[..., S], values: Mapping[str, Any]) -> S:
    """A settings dataclass, or what a function with its own defaults makes of one, from names and values
    (texts are read as its fields' types).

    ValueError naming the nearest field for an unknown name, and what was wanted for a value of another kind.
    """
    hints = typing.get_type_hints(check_names(make, values))
    return make(**{name: read_as(hints[name], value, name) for name, value in values.items()})


def read_as(wanted: Any, value: Any, name: str, between: str = ",") -> Any:
    """`value` as the type `wanted`; ValueError where it is not one. `between` stands between the parts of a
    tuple where the user writes them.
    """
    options = typing.get_args(wanted)
    if typing.get_origin(wanted) is typing.Literal:
        if value not in options:
            hint = nearest(str(value), map(str, options), "choose one of")
            raise ValueError(f"{name} is {value!r}; {hint}")
        return value
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):
        if value is None or value == "none" and str not in options:
            return None
        return read_as(next(o for o in options if o is not types.NoneType), value, name, between)
    try:
        if typing.get_origin(wanted) is tuple:
            parts = value.replace(between, " ").split() if isinstance(value, str) else list(value)
            if len(parts) != len(options):
                raise ValueError
            return tuple(read_as(o, part, name) for o, part in zip(options, parts, strict=True))
        if wanted is bool and isinstance(value, str):
            return {"true": True, "false": False, "yes": True, "no": False}[value.lower()]
        if wanted is int and isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
            value = int(value)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if wanted is int and not whole and (isinstance(value, bool) or float(value) != int(value)):
            raise ValueError
        found = wanted(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        if options:
            example = between.join(("0", "0.75") if options[0] is float else ("8", "400"))
            raise ValueError(
                f"{name} is {value!r}; give {len(options)} numbers in one word, like {example}"
            ) from None
        kind = getattr(wanted, "__name__", str(wanted))
        raise ValueError(f"{name} is {value!r}; it must be of kind {kind}") from None
    if wanted is int and abs(found) > LARGEST:
        raise ValueError(f"{name} is {found}; give a whole number of at most {LARGEST}")
    return found

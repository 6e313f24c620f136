"""The written form of a reward that is made of others: `rank(0.25*imagereward + judge:DIR) if safe>=1`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from promptloop.names import one_of

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
TERM = re.compile(rf"(?:({NUMBER})\s*\*\s*)?([^*]+)")  # WEIGHT*NAME, or NAME
WHOLE = re.compile(rf"(?P<sum>.*?)(?:\s+if\s+(?P<gates>.*?)(?:\s+else\s+(?P<shut>{NUMBER}))?)?")
AROUND = re.compile(r"(\w*)\((.*)\)")
OPENED = re.compile(r"(\w*)\(")
GATE = re.compile(rf"(.+?)\s*(>=|<)\s*({NUMBER})")
NORMS = ("z", "rank")


@final
@dataclass(frozen=True)
class Written:
    """`terms` (weight, name), `norm` "raw", "z" or "rank", `gates` (name, ">=" or "<", threshold), and what a
    shut gate gives.
    """

    terms: tuple[tuple[float, str], ...]
    norm: str = "raw"
    gates: tuple[tuple[str, str, float], ...] = ()
    shut: float | None = None


def is_composed(said: str) -> bool:
    """Whether it is more than a name."""
    said = said.strip()
    return " + " in said or "*" in said or " if " in said or OPENED.match(said) is not None


def names_in(said: str) -> list[str]:
    """The names of all its terms, then of its gates; the one name where it is no more than that."""
    if not is_composed(said):
        return [said]
    written = read(said)
    return [name for _, name in written.terms] + [name for name, _, _ in written.gates]


def read(said: str) -> Written:
    """What is written; ValueError naming the part that cannot be read."""
    match = WHOLE.fullmatch(said.strip())
    if match is None:
        raise ValueError(f"reward {said!r} is not SUM if NAME>=NUMBER else NUMBER, on one line")
    inner, norm = match["sum"], "raw"
    if around := AROUND.fullmatch(inner):
        norm, inner = one_of(around[1], NORMS, "normalisation"), around[2]
    elif (opened := OPENED.match(inner)) and inner.count("(") > inner.count(")"):
        one_of(opened[1], NORMS, "normalisation")
        raise ValueError(f"reward {said!r} opens a bracket that is never closed: write {opened[0]}NAME + "
                         "NAME), and gates behind it")  # fmt: skip
    terms = tuple(term(part.strip(), said) for part in inner.split(" + "))
    gates: tuple[tuple[str, str, float], ...] = ()
    if match["gates"] is not None:
        gates = tuple(gate(part.strip(), said) for part in match["gates"].split(" and "))
    return Written(terms, norm, gates, None if match["shut"] is None else float(match["shut"]))


def term(part: str, said: str) -> tuple[float, str]:
    match = TERM.fullmatch(part)
    if match is None:
        raise ValueError(f"reward {said!r} has the term {part!r}, which is not WEIGHT*NAME; write a sum as "
                         "0.25*imagereward:DIR + -1*judge:DIR")  # fmt: skip
    if around := OPENED.match(match[2]):
        one_of(around[1], NORMS, "normalisation")
        raise ValueError(f"reward {said!r} has {around[1]}(...) around a part; it goes around the whole sum: "
                         f"{around[1]}(NAME + NAME)")  # fmt: skip
    return float(match[1] or 1), match[2].strip()


def gate(part: str, said: str) -> tuple[str, str, float]:
    match = GATE.fullmatch(part)
    if match is None:
        raise ValueError(f"reward {said!r} has the gate {part!r}, which is not NAME>=NUMBER or NAME<NUMBER; "
                         "write SUM if NAME>=0.5 and NAME<2 else 0")  # fmt: skip
    return match[1], match[2], float(match[3])

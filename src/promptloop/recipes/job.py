"""The settings of one run of the main job: everything that decides its pixels, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Any, final

from promptloop.controls.plan import check_delay, even_steps
from promptloop.denoisers.memory import OFFLOADS
from promptloop.recipes import steering

KINDS: dict[str, Any] = {
    "tuple": list,
    "str": str,
    "int": int,
    "float": (int, float),
    "float | None": (int, float, NoneType),
    "bool": bool,
}  # in JSON
LONGEST = 4000  # characters of a query: more than any supported text encoder reads
LISTS = ("queries", "window", "lora", "control")  # tuples here, lists in JSON
DTYPES = ("float32", "bfloat16", "float16")


@final
@dataclass(frozen=True)
class Job:
    """`n` samples of every query, seeded seed, seed + 1, ...; sample i of a query is the same for every n.

    `backbone` and `policy` are names of embedded models, folders, hub ids or "package.module:name"; policy
    "none" samples the query alone. `compare` adds that for every sample, from the same noise. `size` is the
    images' side in pixels, 0 what the backbone makes unless told otherwise. `lora` are [NAME=]PATH[:WEIGHT];
    `offload`, `vae_tiling`, `vae_slicing` and `embedded_guidance` as in `load`. `control` are methods as
    NAME:SETTING=VALUE,... (`promptloop methods`), `solver` is NAME:eta=NUMBER, one of diffusers' schedulers
    or "", the backbone's own. ValueError on values that cannot run.
    """

    queries: tuple[str, ...]
    backbone: str = "mini-turbo"
    policy: str = "mini-policy"
    refinements: int = 5
    window: tuple[float, float] = (0.0, 1.0)
    open_loop: bool = False
    steps: int = 20
    guidance: float = 5.0
    negative: str = ""
    temperature: float = 0.0
    seed: int = 0
    n: int = 4
    compare: bool = False
    device: str = "auto"
    dtype: str = "float32"
    max_batch: int = 16
    delay: int = 0
    size: int = 0
    lora: tuple[str, ...] = ()
    offload: str = "none"
    vae_tiling: bool = False
    vae_slicing: bool = False
    embedded_guidance: float | None = None
    control: tuple[str, ...] = ()
    solver: str = ""

    def __post_init__(self) -> None:
        if not self.queries:
            raise ValueError("there is no query; say what the picture should show")
        for query in self.queries:
            if not query.strip():
                raise ValueError("the query is empty; say what the picture should show")
            if len(query) > LONGEST:
                raise ValueError(f"a query has {len(query)} characters; give at most {LONGEST}")
        least_of = {"n": 1, "steps": 1, "refinements": 0, "max_batch": 1, "seed": 0, "size": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.window[0] < self.window[1] <= 1:
            raise ValueError(
                f"window is {self.window}; give two parts of the trajectory in order, as 0.1 0.6"
            )
        check_delay(self.delay, "open" if self.open_loop else "closed")
        self.refined_steps  # noqa: B018  (they must fit)
        told = () if self.embedded_guidance is None else ("embedded_guidance",)
        for name in ("guidance", "temperature", *told):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number from 0")
        if self.negative and self.guidance == 1:
            raise ValueError(
                "a negative prompt does nothing at guidance 1; give --guidance above 1, or leave it out"
            )
        steering.check(self.control, self.solver)
        if self.compare and self.policy == "none" and not self.control:
            raise ValueError(
                "compare needs a policy or a control: without them every image is the query's own already"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if self.offload not in OFFLOADS:
            raise ValueError(f"offload is {self.offload!r}; choose one of {', '.join(OFFLOADS)}")

    @property
    def refined_steps(self) -> tuple[int, ...]:
        """The steps before which the prompt is written; ValueError where they do not fit."""
        return self.refined_of(self.steps)

    def refined_of(self, steps: int) -> tuple[int, ...]:
        """The same in a loop of `steps` steps; a wrapped two-stage scheduler makes more than asked."""
        if self.policy == "none":
            return ()
        return tuple(even_steps(self.refinements, steps, self.window, self.delay))

    @property
    def samples(self) -> list[tuple[str, int]]:
        """(query, seed) of every sample, in order: query by query."""
        return [(query, self.seed + i) for query in self.queries for i in range(self.n)]

    @property
    def loras(self) -> tuple[str, ...]:
        """`lora`, and those that controls name by a path, switched off."""
        return (*self.lora, *(f"{name}={path}:0" for path, name in steering.loras(self.control).items()))

    def as_dict(self) -> dict[str, Any]:
        lists = {name: list(getattr(self, name)) for name in LISTS}
        return {**asdict(self), **lists}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Job:
        """The job written down by `as_dict`; ValueError on settings that are missing or unknown."""
        since = {"delay": 0, "size": 0, "lora": [], "offload": "none", "vae_tiling": False,
                 "vae_slicing": False, "embedded_guidance": None, "control": [], "solver": ""}  # fmt: skip
        values = {**since, **values}  # not in the traces of earlier versions
        known = {field.name for field in fields(Job)}
        wrong = sorted(known ^ set(values))
        if wrong:
            raise ValueError(f"these settings of the job are missing or unknown: {', '.join(wrong)}")
        for field in fields(Job):
            value, kind = values[field.name], KINDS[str(field.type).split("[")[0]]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"the job's {field.name} is {value!r}, which is not what it was written as")
        return Job(**{**values, **{name: tuple(values[name]) for name in LISTS}})

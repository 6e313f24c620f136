"""From `--control NAME:SETTING=VALUE,...` and `--solver NAME:eta=1` to what acts on the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Any, final, get_origin, get_type_hints

import torch

from promptloop.controls.guidance import CFG
from promptloop.controls.recurrence import Recurrence
from promptloop.denoisers.denoiser import Denoiser
from promptloop.names import LORA_CONFIG, one_of
from promptloop.recipes import parts
from promptloop.recipes.methods import METHODS, OWN, is_driver, makers, method_named, settings_of
from promptloop.recipes.reading import read_as
from promptloop.recipes.rewards import (
    early_reward_named,
    golden_noise_named,
    log_h_named,
    own_scale,
    reward_named,
)
from promptloop.sample import Control, Sample, Solver, sample
from promptloop.solvers import CPS, DDIM, LCM, DanceSDE, Euler, FlowSDE, Heun, Scheduler

SOLVERS = {"ddim": DDIM, "euler": Euler, "heun": Heun, "flow-sde": FlowSDE, "dance-sde": DanceSDE,
           "cps": CPS, "lcm": LCM}  # fmt: skip
MODELS = ("tuned",)  # settings that are LoRAs or backbones
REWARDS = ("reward", "value")  # and rewards
POLICIES = ("policy",)  # and who writes prompts
READ = {
    "early": early_reward_named,
    "network": golden_noise_named,
    "h": log_h_named,
}  # and what else is read from files
STEPPED = {"prompts": str, "prune": int, "keep": float}  # step:value
NUMBERS = ("w", "scale", "rate", "strength", "weights")  # one number, or one for each step (or model)


@final
@dataclass(frozen=True, eq=False)
class Steering:
    """What a run is steered by. `controls` come after guidance; `run` is `sample`, or a search above it."""

    controls: tuple[Control, ...] = ()
    solver: Solver | None = None
    turn: Recurrence | None = None
    search: Callable[..., Sample] | None = None

    @property
    def guides(self) -> bool:
        """Whether it has classifier-free guidance of its own."""
        return any(isinstance(control, CFG) for control in self.controls)

    def sample(
        self, denoiser: Denoiser, prompts: Sequence[str], *, decode: bool = True, **options: Any
    ) -> Sample:
        """`sample`, or the search in its place, which always decodes."""
        run = partial(sample, decode=decode) if self.search is None else self.search
        return run(denoiser, prompts, **{"solver": self.solver, "turn": self.turn, **options})


# --- reading


def parsed(spec: str) -> tuple[str, dict[str, str]]:
    """NAME:KEY=VALUE,... in its parts. ValueError, with the nearest, for names that are not known, settings
    without a value, given twice, or lacking.
    """
    name, _, rest = spec.partition(":")
    takers = makers(one_of(name, METHODS, "method"))
    if METHODS[name].given == OWN:
        raise ValueError(f"{name} is not given as --control: it is what --policy and --refinements make")
    known = settings_of(*takers)
    given = pairs(spec, rest, [*known])
    lacking = [key for key, default in known.items() if default is MISSING and key not in given]
    if lacking:
        raise ValueError(f"control {spec!r} lacks {lacking[0]}; say {name}:{lacking[0]}=..., as `promptloop "
                         f"methods {name}` tells")  # fmt: skip
    return name, given


def pairs(spec: str, rest: str, known: Sequence[str]) -> dict[str, str]:
    """Settings as texts; ValueError for a key that is not among the known ones."""
    given: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (text.strip() for text in pair.partition("="))
        if not equals or not value:
            raise ValueError(f"{spec!r}: {pair!r} is not SETTING=VALUE (a list has + between, not a comma)")
        one_of(key, known, f"setting of {spec.partition(':')[0]}")
        if key in given:
            raise ValueError(f"{spec!r} has {key} twice")
        given[key] = value
    return given


def check(specs: Sequence[str], solver: str) -> None:
    """ValueError for what no run could be steered by; nothing is loaded."""
    names = [parsed(spec)[0] for spec in specs]
    for spec in specs:
        name, given = parsed(spec)
        plain = {k: v for k, v in given.items() if k not in (*MODELS, *REWARDS, *POLICIES, *READ)}
        values(name, plain, {}, "cpu")
    for alone in ([n for n in names if is_driver(n)], [n for n in names if n == "recurrence"]):
        if len(alone) > 1:
            raise ValueError(f"{' and '.join(alone)} cannot both run the loop; give one of them")
    if solver and solver_class(solver) in SOLVERS.values():
        solver_named(solver, None)


def loras(specs: Sequence[str]) -> dict[str, str]:
    """Path -> name of every LoRA that the controls name by a path."""
    paths = [text for spec in specs for text in parsed(spec)[1].get("tuned", "").split("+") if text]
    found = {text: lora_at(text) for text in paths}
    return {str(path): f"control_{k}" for k, path in enumerate(filter(None, found.values()))}


def lora_at(text: str) -> Path | None:
    """The folder or file of the LoRA at this path; None where it is something else."""
    path = Path(text).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        return path
    if parts.trained_role(path) == "backbone":
        path = Path(parts.locate(text, "backbone")[0])
    return path if (path / LORA_CONFIG).is_file() else None


# --- making


def steering(specs: Sequence[str], solver: str, denoiser: Denoiser, device: str | torch.device) -> Steering:
    """For a denoiser that has the `loras` of the specs. ValueError as `check`'s, and for rewards and models
    that cannot be had.
    """
    made: list[Control] = []
    turn, search = None, None
    for spec in specs:
        name, given = parsed(spec)
        kind, settings = method_named(name), values(name, given, loras(specs), device, denoiser)
        if is_driver(name):
            search = partial(kind, **settings)
        elif name == "recurrence":
            turn = kind(**settings)
        else:
            made.append(kind(**settings))
    return Steering(tuple(made), solver_named(solver, denoiser), turn, search)


def values(
    name: str,
    given: Mapping[str, str],
    named: Mapping[str, str],
    device: str | torch.device,
    denoiser: Denoiser | None = None,
) -> dict[str, Any]:
    """The settings as what the method takes. `named`: path -> name of the LoRAs that were loaded for it."""
    hints = {key: hint for made in reversed(makers(name)) for key, hint in get_type_hints(made).items()}
    return {
        key: value(f"{name}'s {key}", key, text, hints[key], named, device, denoiser)
        for key, text in given.items()
    }


def value(
    what: str, key: str, text: str, hint: Any, named: Mapping[str, str], device: Any, denoiser: Any
) -> Any:
    """One setting from its text."""
    if key in REWARDS:
        return None if text == "none" else own_scale(reward_named(text, device), text)
    if key in POLICIES:
        return parts.load_policy(text, device=torch.device(device), dtype=denoiser.dtype)
    if key in MODELS:
        models = [tuned_named(one, named, device, denoiser) for one in text.split("+")]
        return models if get_origin(hint) is Sequence else models[0]
    if key in READ:
        return READ[key](text, device)
    if key in STEPPED:
        rows = [pair.partition(":") for pair in text.split("+")]
        return {read_as(int, k, what): read_as(STEPPED[key], v, what) for k, _, v in rows}
    if key in NUMBERS:
        numbers = [read_as(float, one, what) for one in text.split("+")]
        return numbers[0] if len(numbers) == 1 and key != "weights" else numbers
    return read_as(hint, text, what, "+")


def tuned_named(text: str, named: Mapping[str, str], device: Any, denoiser: Any) -> Any:
    """A LoRA's name, or a second backbone of that name."""
    if (name := named.get(str(lora_at(text)))) is not None:
        return name
    if text in getattr(denoiser, "lora_weights", {}):
        return text
    return parts.backbone(text, torch.device(device), denoiser.dtype).value


def solver_class(spec: str) -> Any:
    """The class that "ddim:eta=1" or "EulerDiscreteScheduler" names; ValueError with the nearest."""
    name, _, rest = spec.partition(":")
    if name in SOLVERS:
        return SOLVERS[name]
    import diffusers

    known = [*SOLVERS, *(n for n in dir(diffusers) if n.endswith("Scheduler"))]
    found = getattr(diffusers, one_of(name, known, "solver"))
    if rest:
        raise ValueError(f"solver {spec!r}: a diffusers scheduler takes its settings from the backbone's own")
    return found


def solver_named(spec: str, denoiser: Denoiser | None) -> Solver | None:
    """The solver of this name and settings; "" is the backbone's own (None)."""
    if not spec:
        return None
    kind = solver_class(spec)
    if kind in SOLVERS.values():
        name, _, rest = spec.partition(":")
        given = pairs(spec, rest, [*settings_of(kind)])
        return kind(**{key: read_as(float, text, f"{name}'s {key}") for key, text in given.items()})
    if denoiser is None or denoiser.scheduler is None:
        raise ValueError(f"solver {spec!r}: the backbone has no scheduler to take settings from")
    return Scheduler(kind.from_config(denoiser.scheduler.config), denoiser.scheduler_options)

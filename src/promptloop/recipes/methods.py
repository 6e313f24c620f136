"""The methods: what each does, needs and costs, and what makes it of `--control NAME:SETTING=VALUE,...`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, final

from promptloop.names import one_of
from promptloop.recipes.training import found

ANY = "any reward"
GRADIENT = "a differentiable reward"
DRAWS = "a solver that draws"
OURS = "a solver of ours"
CONTROL, DRIVER, OWN = "--control", "--control, one at most", "its own options"


@final
@dataclass(frozen=True)
class Method:
    """`made` is the "module:name" of a control, of a way to take a step, or of a search above the loop."""

    made: str
    needs: str
    costs: str
    given: str = CONTROL
    under: str = ""  # the search that it runs, whose settings it takes too


METHODS: dict[str, Method] = {
    "prompt-loop": Method("promptloop.controls.prompt:PromptLoop", "a policy", "1; the policy's tokens", OWN),
    "rewrite": Method("promptloop.controls.prompt:Rewrite", "a policy", "1; one answer", OWN),
    "scheduled": Method("promptloop.controls.prompt:Scheduled", "a prompt for each step", "1"),
    "weighted-tokens": Method(
        "promptloop.controls.weighted:WeightedTokens", "embeddings with places for words", "1"
    ),
    "cfg": Method("promptloop.controls.guidance:CFG", "", "2 inside its window"),
    "negative-prompt": Method(
        "promptloop.controls.negative:NegativePrompt", "a policy, guidance", "1; the policy's tokens"
    ),
    "prompt-guidance": Method("promptloop.controls.guidance:PromptGuidance", "a policy", "2"),
    "rlg": Method("promptloop.controls.tuned:RLG", "a LoRA or a second backbone", "2; 1 at w 0 and 1"),
    "blend": Method("promptloop.controls.tuned:Blend", "LoRAs or backbones", "1 a model; steps=draw: 1"),
    "reward-gradient": Method(
        "promptloop.controls.gradients:RewardGradient", GRADIENT, "1 and a backward pass"
    ),
    "loss-guidance": Method(
        "promptloop.controls.gradients:LossGuidance", GRADIENT, "1 and a backward pass; `samples` rewards"
    ),
    "noisy-reward-gradient": Method(
        "promptloop.controls.gradients:NoisyRewardGradient", "a reward of noisy latents", "1"
    ),
    "ascent": Method("promptloop.controls.gradients:Ascent", GRADIENT, "1; `steps` rewards"),
    "recurrence": Method("promptloop.controls.recurrence:Recurrence", OURS, "`times`"),
    "doit": Method(
        "promptloop.controls.doob:DOIT", f"{ANY}, {DRAWS}", "1 and a backward pass; `samples` rewards"
    ),
    "doob-matching": Method("promptloop.controls.matching:DoobMatching", "a fitted log h", "1"),
    "fk": Method("promptloop.controls.particles:FK", f"{ANY}, {DRAWS}", "`particles`"),
    "das": Method(
        "promptloop.controls.particles:DAS",
        f"{GRADIENT}, {DRAWS}",
        "2 `particles`, with backward passes",
    ),
    "svdd": Method("promptloop.controls.candidates:SVDD", f"{ANY}, {DRAWS}", "`candidates`, and 1"),
    "demon": Method("promptloop.controls.candidates:Demon", f"{ANY}, {DRAWS}", "`candidates`, and 1"),
    "uni-code": Method(
        "promptloop.controls.blockwise:UniCoDe",
        f"{GRADIENT} (scale=0: {ANY}), {DRAWS}",
        "`streams` x (1 + 1 / `every` + 1 / `block`)",
    ),
    "best-of": Method("promptloop.controls.noise:BestOf", ANY, "`of`; fewer where pruned"),
    "ttsnap": Method("promptloop.controls.ttsnap:TTSnap", ANY, "`of`, fewer after each step of `keep`"),
    "golden-noise": Method("promptloop.controls.golden:GoldenNoise", "a network trained for it", "1"),
    "zero-order": Method("promptloop.controls.search:zero_order", ANY, "1 + `rounds` x `neighbours`", DRIVER),
    "evolutionary": Method(
        "promptloop.controls.search:evolutionary",
        ANY,
        "`population` + `generations` x (`population` - `elites`)",
        DRIVER,
    ),
    "reno": Method(
        "promptloop.controls.optimised:reno",
        GRADIENT,
        "2 x `iterations`, with backward passes, and 1",
        DRIVER,
    ),
    "carinox": Method(
        "promptloop.controls.optimised:carinox",
        GRADIENT,
        "`starts` x (2 x `iterations`, with backward passes, and 1)",
        DRIVER,
        "promptloop.controls.optimised:reno",
    ),
    "find": Method("promptloop.controls.noise_law:find", ANY, "1 + 2 x `pairs` x `iterations`", DRIVER),
    "over-paths": Method(
        "promptloop.controls.paths:over_paths", f"{ANY}, {OURS}", "`paths` x `copies`, for a part", DRIVER
    ),
    "dts": Method("promptloop.controls.trees:dts", f"{ANY}, {DRAWS}", "up to `rollouts`", DRIVER),
    "dts-star": Method("promptloop.controls.trees:dts_star", f"{ANY}, {DRAWS}", "up to `rollouts`", DRIVER),
}  # costs: evaluations of the denoiser, for each it would make without (guidance doubles both)


def method_named(name: str) -> Any:
    """What makes the method; ValueError with the nearest name."""
    return found(METHODS[one_of(name, METHODS, "method")].made)


def is_driver(name: str) -> bool:
    """Whether it runs the loop again and again, instead of acting inside it."""
    return METHODS[name].given == DRIVER


def makers(name: str) -> list[Any]:
    """What takes the method's settings: itself, and the search that it runs."""
    made, under = method_named(name), METHODS[name].under
    return [made, found(under)] if under else [made]


def settings_of(*makers: Callable[..., Any]) -> dict[str, Any]:
    """Setting -> its default (MISSING where it has none) of controls or searches; the first says."""
    if len(makers) > 1:
        return settings_of(*makers[1:]) | settings_of(makers[0])
    made = makers[0]
    if is_dataclass(made):
        return {f.name: f.default_factory() if f.default_factory is not MISSING else f.default
                for f in fields(made)}  # fmt: skip
    given = inspect.signature(made).parameters.values()
    return {
        p.name: MISSING if p.default is p.empty else p.default
        for p in given
        if p.kind is p.KEYWORD_ONLY and p.name != "seeds"
    }


def listed() -> str:
    """Every method, one a line: name, what it is, needs, cost."""
    width = max(map(len, METHODS))
    rows = ["promptloop generate ... --control NAME:SETTING=VALUE,...; the methods (promptloop methods NAME"
            " tells more):", ""]  # fmt: skip
    for name, method in METHODS.items():
        needs = f"; needs {method.needs}" if method.needs else ""
        rows.append(f"  {name:{width}}  {first_sentence(name)}")
        rows.append(f"  {'':{width}}    evaluations {method.costs}{needs}")
    return "\n".join(rows)


def first_sentence(name: str) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(method_named(name)) or "").split("\n")[0]


def told(name: str) -> str:
    """All about one method: its docstring, settings with defaults, and how it is given."""
    made, method = method_named(name), METHODS[name]
    lines = [f"{name}: {inspect.getdoc(made)}", "", "Settings:"]
    for setting, default in settings_of(*makers(name)).items():
        lines.append(
            f"  {setting}" + (" (must be given)" if default is MISSING else f" = {spelled(default)}")
        )
    lines += ["", f"Needs: {method.needs or 'nothing'}.", f"Evaluations of the denoiser: {method.costs}."]
    lines += [f"On the command line: {method.given}.", f"In Python: {method.made.replace(':', '.')}."]
    return "\n".join(lines)


def spelled(value: Any) -> str:
    """A setting's value as it is written in a control: lists with + between."""
    if isinstance(value, tuple | list):
        return "+".join(map(spelled, value))
    if isinstance(value, dict):
        return "+".join(f"{k}:{v}" for k, v in value.items()) or "none"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)

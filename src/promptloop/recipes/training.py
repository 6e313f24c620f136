"""From `promptloop train RECIPE --key value ...` to a run: which recipes there are, and their settings."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from promptloop.names import one_of
from promptloop.recipes.embedded import MINI
from promptloop.recipes.reading import check_names, settings_class, settings_from
from promptloop.recipes.real import SAID, values_of

GRPO = "promptloop.recipes.grpo:grpo"
RECIPES = {  # name -> what makes its settings of those given, what runs them
    "mini": ("promptloop.recipes.embedded:mini", GRPO),
    "mini-dpo": ("promptloop.recipes.dpo_settings:MiniDPO", "promptloop.recipes.mini_dpo:mini_dpo"),
    "reward": (
        "promptloop.recipes.reward_settings:RewardTraining",
        "promptloop.recipes.reward_training:reward_training",
    ),
    "mini-reward": (
        "promptloop.recipes.reward_settings:MiniReward",
        "promptloop.recipes.reward_training:mini_reward",
    ),
    "d2-align": ("promptloop.recipes.reward_settings:D2Align", "promptloop.recipes.d2_align:d2_align"),
    "sd15_imagereward": ("promptloop.recipes.real:sd15_imagereward", GRPO),
    "sdxl_imagereward": ("promptloop.recipes.real:sdxl_imagereward", GRPO),
    "sdxl_turbo_composite": ("promptloop.recipes.real:sdxl_turbo_composite", GRPO),
    "sd35_imagereward": ("promptloop.recipes.real:sd35_imagereward", GRPO),
    "flux_imagereward": ("promptloop.recipes.real:flux_imagereward", GRPO),
}


def listed() -> str:
    """The recipes, one a line."""
    width = max(map(len, RECIPES))
    rows = [
        f"  {name:{width}}  {(found(make).__doc__ or '').split(chr(10))[0]}"
        for name, (make, _) in RECIPES.items()
    ]
    return "\n".join(["promptloop train RECIPE --out DIR [--SETTING VALUE]...; the recipes:", *rows])


def told(recipe: str) -> str:
    """The settings of a recipe, one a line: its value unless told otherwise, and what it means."""
    make = made_by(recipe)
    kind = settings_class(make)
    hints, values = typing.get_type_hints(kind, include_extras=True), defaults(recipe)
    rows = []
    for name, value in values.items():
        wanted, meaning = typing.get_args(hints[name])
        if typing.get_origin(wanted) is typing.Literal:
            meaning = f"{meaning} ({', '.join(typing.get_args(wanted))})"
        rows.append((f"--{name.replace('_', '-')} {written(value)}", meaning))
    width = min(max(len(given) for given, _ in rows), 40)
    return "\n".join([f"Settings of {recipe}, with their defaults:",
                      *(f"  {given:{width}}  {meaning}" for given, meaning in rows)])  # fmt: skip


def defaults(recipe: str) -> dict[str, Any]:
    """The recipe's settings as they are unless told otherwise; None becomes the backbone's or another's."""
    found = {f.name: f.default for f in fields(settings_class(made_by(recipe)))}
    return found | (MINI if recipe == "mini" else values_of(SAID[recipe]) if recipe in SAID else {})


def written(value: Any) -> str:
    """A setting's value as it is given on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def settings_given(arguments: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as a dict; ValueError for anything else."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise ValueError(
                f"{word!r} has no place here; settings are given as --key value, two numbers in one word: "
                "--window 0,0.75"
            )
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals:
            if not rest:
                raise ValueError(f"--{key} lacks its value")
            value = rest.pop(0)
        if key in given:
            raise ValueError(f"--{key} is given twice")
        given[key] = value
    return given


def made_by(recipe: str) -> Callable[..., Any]:
    """What makes the recipe's settings of those given; ValueError with the nearest name."""
    make: Callable[..., Any] = found(RECIPES[one_of(recipe, RECIPES, "recipe")][0])
    return make


def check(recipe: str, given: Mapping[str, Any]) -> None:
    """ValueError for an unknown recipe or setting, with the nearest. Nothing heavy is imported for it."""
    check_names(made_by(recipe), given)


def found(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)


def run(recipe: str, given: Mapping[str, Any], folder: Path, *, resume: bool, **others: Any) -> str:
    """Runs the recipe in `folder`; what the terminal says at the end.

    With `resume` the folder's own settings stand, and `given` must not contradict them.
    """
    from promptloop.recipes import runs

    make = made_by(recipe)
    check_names(make, given)
    runs.free(folder, resume=resume)
    stored = vars(runs.settings_of(folder, recipe, make)) if resume else {}
    settings = settings_from(make, {**stored, **given})
    function = found(RECIPES[recipe][1])
    done = function(settings, folder, recipe=recipe, resume=resume, **others)
    return (
        f"{done['updates']} updates, {reached(done['lines'])}; weights, metrics and card in {folder}\n"
        f"try it: {runs.try_it(str(folder), done['role'], done['settings'])}"
    )


def reached(lines: Sequence[Mapping[str, float]]) -> str:
    """The first and last look at what the training is after."""
    for name in ("reward", "accuracy", "corrected"):
        if looks := [line[name] for line in lines if name in line]:
            return f"{name} {looks[0]:.3f} -> {looks[-1]:.3f}"
    return "reward not looked at"

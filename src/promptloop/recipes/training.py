"""From `promptloop train RECIPE --key value ...` to a run: which recipes there are, and their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from promptloop.names import one_of
from promptloop.recipes import runs

GRPO = "promptloop.recipes.grpo:grpo"
RECIPES = {  # name -> what makes its settings of those given, what runs them
    "mini": ("promptloop.recipes.embedded:mini", GRPO),
    "mini-dpo": ("promptloop.recipes.mini_dpo:MiniDPO", "promptloop.recipes.mini_dpo:mini_dpo"),
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


def settings_given(arguments: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as a dict; ValueError for anything else."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise ValueError(f"{word!r} has no place here; settings are given as --key value")
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


def recipe_named(name: str) -> tuple[Any, Callable[..., dict[str, Any]]]:
    """What makes a recipe's settings, and the function that runs them; ValueError with the nearest name."""
    make, function = (found(where) for where in RECIPES[one_of(name, RECIPES, "recipe")])
    return make, function


def found(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)


def run(recipe: str, given: Mapping[str, Any], folder: Path, *, resume: bool, **others: Any) -> str:
    """Runs the recipe in `folder`; what the terminal says at the end.

    With `resume` the folder's own settings stand, and `given` must not contradict them.
    """
    make, function = recipe_named(recipe)
    if resume:
        stored = runs.settings_of(folder, recipe, make)
        settings = runs.settings_from(make, {**vars(stored), **given})
    else:
        settings = runs.settings_from(make, given)
    done = function(settings, folder, recipe=recipe, resume=resume, **others)
    rewards = [line["reward"] for line in done["lines"] if "reward" in line]
    reached = f"reward {rewards[0]:.3f} -> {rewards[-1]:.3f}" if rewards else "reward not looked at"
    return (
        f"{done['updates']} updates, {reached}; weights, metrics and card in {folder}\n"
        f"try it: {runs.try_it(str(folder), done['role'], done['settings'])}"
    )

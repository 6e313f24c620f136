"""A run's folder: its config, its policy, its card. Everything in it is plain JSON, safetensors or
Markdown.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from promptloop import __version__, checkpoint
from promptloop.recipes import trace
from promptloop.recipes.lock import LOCK, Lock
from promptloop.recipes.places import writable
from promptloop.recipes.reading import S, settings_from

CONFIG, METRICS = "config.json", "metrics.jsonl"
POLICY, BACKBONE, REWARD = "policy", "backbone", "reward"  # what a run trains, and the folder in it
FIRST = "first"  # in a policy's folder: who writes the first draft, if another does
TRAINS = {  # recipe -> what it trains
    "mini": POLICY,
    "mini-dpo": BACKBONE,
    "sd15_imagereward": POLICY,
    "sdxl_imagereward": POLICY,
    "sdxl_turbo_composite": POLICY,
    "sd35_imagereward": POLICY,
    "flux_imagereward": POLICY,
    "reward": REWARD,
    "mini-reward": REWARD,
    "d2-align": REWARD,
}
ROLES = {  # title, what it is, tag
    POLICY: (
        "A prompt policy",
        "It writes prompts inside the sampling loop of a text-to-image model (PromptLoop, arXiv 2510.00430).",
        "grpo",
    ),
    BACKBONE: (
        "A tuned backbone",
        "A LoRA on the attention of a diffusion model, tuned on preferences (arXiv 2311.12908).",
        "dpo",
    ),
    REWARD: (
        "A reward",
        "It scores an image for what was asked for, on a scale of its own.",
        "reward-model",
    ),
}
LISTS = ("prompts", "pairs", "images")  # settings that name a list which a run must go on with
EXAMPLE = "a jade disc and a golden block"  # what a run is tried on
USUAL = "mini-turbo"  # what `promptloop generate` draws with unless told otherwise


def begin(
    run: Path,
    recipe: str,
    settings: Any,
    *,
    resume: bool,
    prompts: str | None = None,
    say: Callable[[str], None] = print,
) -> Lock:
    """Makes the folder and writes its config, or checks that it holds this very run; the lock that keeps
    other processes out of it.

    `prompts` is the sha256 of what is trained on. ValueError where there is a run and `resume` was not asked
    for, or one with other settings or prompts, or where another process is training.
    """
    config = json.loads(json.dumps({"recipe": recipe, "settings": asdict(settings), "prompts": prompts}))
    since = {f.name: f.default for f in fields(settings) if f.default is not MISSING}  # added later
    if not (writable(run) / LOCK).exists():
        begun(run, config, since, resume=resume)  # before anything is written there
    run.mkdir(parents=True, exist_ok=True)
    lock = Lock(run, say)
    try:
        if not begun(run, config, since, resume=resume):
            written(run / CONFIG, {**config, "promptloop": __version__})
    except BaseException:
        lock.release()
        raise
    return lock


def begun(run: Path, config: Mapping[str, Any], since: Mapping[str, Any], *, resume: bool) -> bool:
    """Whether `run` holds the run of this config, or nothing yet; ValueError for anything else."""
    file, there = run / CONFIG, trained_in(run)
    if file.exists() and (there or resume):
        found = config_of(run)
        free(run, resume=resume)
        ours, theirs = config["settings"], json.loads(json.dumps(since)) | found.get("settings", {})
        other = [k for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k)]
        if found.get("recipe") != config["recipe"] or other:
            told = ", ".join(f"{k} {theirs.get(k)} (now {ours.get(k)})" for k in other) or found.get("recipe")
            raise ValueError(f"{run} holds a run with {told}; resume with its own settings")
        if found["prompts"] != config["prompts"]:
            listed = next(ours[name] for name in LISTS if name in ours)
            raise ValueError(f"{listed} no longer holds what {run} was begun with; put that back, or begin "
                             "again in another folder")  # fmt: skip
        return True
    if resume:
        raise ValueError(f"{run} holds no run to resume")
    if run.exists() and any(f.name not in (CONFIG, LOCK) for f in run.iterdir()):  # nothing was trained yet
        if file.exists():
            raise ValueError(
                f"{run} holds a run that was begun; give --resume to go on with it, or another --out"
            )
        raise ValueError(f"{run} is not empty; give another --out")
    return False


def trained_in(run: Path) -> bool:
    """Whether something of a training is in the folder."""
    return any(run.glob("*.safetensors")) or (run / METRICS).exists() or bool(checkpoint.steps(run))


def free(run: Path, *, resume: bool) -> None:
    """ValueError where the folder holds a run and `resume` was not asked for."""
    if not resume and (run / CONFIG).exists() and trained_in(run):
        raise ValueError(f"{run} holds a run; give --resume to go on with it, or another --out")


def record(run: Path, loaded: Mapping[str, str], in_force: Mapping[str, Any]) -> list[str]:
    """Adds to the config what was loaded (setting -> sha256), and values that are no settings or that took
    the place of one; or checks that a resumed run has loaded what it was begun with. What to say of it.

    ValueError naming the settings whose models are others now. Runs of older versions do not tell theirs.
    """
    found = config_of(run)
    known = found.get("loaded")
    if known is not None:
        other = [name for name in sorted({*known, *loaded}) if known.get(name) != loaded.get(name)]
        if other:
            told = ", ".join(f"{name} ({found['settings'].get(name)})" for name in other)
            raise ValueError(f"what is loaded as {told} is not what {run} was begun with; put that back, or "
                             "begin again in another folder")  # fmt: skip
        return []
    written(run / CONFIG, {**found, "loaded": dict(loaded), "in_force": dict(in_force)})
    if not checkpoint.steps(run):
        return []
    return [f"{run} does not tell what models it was begun with: those of now are noted, and checked from "
            "here on"]  # fmt: skip


def written(file: Path, config: Mapping[str, Any]) -> None:
    """The config, whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(config, indent=1), encoding="utf-8")
    part.replace(file)


def finish(folder: Path, save: Callable[[Path], None]) -> None:
    """Saves into `folder`, whole or not at all: where it stands the run has ended."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    save(part)
    checkpoint.as_others(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def config_of(run: Path) -> dict[str, Any]:
    """What the run was begun with; ValueError naming the file where it cannot be read."""
    file = run / CONFIG
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {**found, "recipe": found["recipe"], "settings": dict(found["settings"])} | {
            "prompts": found.get("prompts")
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): put it back, or begin again in another folder"
        ) from None


def resumed(run: Path) -> list[str]:
    """What someone who goes on with a run should know."""
    done, written = max(checkpoint.steps(run), default=0), METRICS
    if not done:
        return [f"{run} has no checkpoint yet: it starts again with the first update"]
    there = {line["update"] for line in lines(run)}
    lost = [k for k in range(1, done + 1) if k not in there]
    return [f"{run / written} has lost the lines of {len(lost)} updates, the first {lost[0]}"] if lost else []


def settings_of(run: Path, recipe: str, kind: Callable[..., S]) -> S:
    """The settings a run was begun with; ValueError where the folder holds none, or another recipe's."""
    if not (run / CONFIG).is_file():
        raise ValueError(f"{run} holds no run ({CONFIG} is missing)")
    found = config_of(run)
    if found["recipe"] != recipe:
        raise ValueError(f"{run} holds a run of {found['recipe']}, not of {recipe}")
    return settings_from(kind, found["settings"])


def lines(run: Path) -> list[dict[str, float]]:
    """The metrics of every update so far."""
    file = run / METRICS
    rows = file.read_text().splitlines(True) if file.exists() else []
    return [json.loads(row) for row in rows if row.endswith("\n")]  # a kill may have cut the last


def try_it(where: str, role: str, settings: Mapping[str, Any]) -> str:
    """The command that uses what a run has trained: makes images as it was trained, or scores one."""
    if role == REWARD:
        named = shlex.quote(f"{settings['trained']}:{where}")
        return f'promptloop score IMAGE --prompt "{EXAMPLE}" --reward {named}'
    words = [f"--{role}", where, "--compare"]
    backbone = str(settings.get("backbone", USUAL))
    if role == POLICY and backbone != USUAL:
        words += ["--backbone", backbone]
    if role == POLICY and settings.get("embedded_guidance") is not None:
        words += ["--embedded-guidance", str(settings["embedded_guidance"])]
    words = ["promptloop", "generate", EXAMPLE, *words, "--out", "out"]
    return shlex.join(words).replace(f"'{EXAMPLE}'", f'"{EXAMPLE}"')


def library(settings: Mapping[str, Any], role: str) -> str:
    """What loads the weights."""
    if settings.get("trained") == "d2-align":
        return "promptloop"
    return "transformers" if role == REWARD or settings.get("train_weights") == "all" else "peft"


def card(run: Path, recipe: str, settings: Mapping[str, Any], device: Any, role: str) -> None:
    """Writes the model card, README.md: how the policy was made, what it reached, how to use it.

    `settings`: those in force. What is uploaded is named by its repository, else by this folder.
    """
    pushed = settings.get("push_to_hub", "none")
    where = str(run) if pushed == "none" else pushed
    seen = lines(run)
    said = list(dict.fromkeys(name for line in seen for name in line if not name.startswith("seconds/")))
    spans = {name: [line for line in seen if name in line] for name in said}
    rows = [f"| {name} | {value} |" for name, value in settings.items()]
    numbers = [
        f"| {name} | {span[0][name]:.4f} (update {span[0]['update']}) | {span[-1][name]:.4f} "
        f"(update {span[-1]['update']}) |"
        for name, span in spans.items()
        if name != "update"
    ]
    stack = ", ".join(f"{k} {v}" for k, v in trace.environment(device).items())
    text = f"""---
library_name: {library(settings, role)}
license: {"other" if role == REWARD and settings.get("reward") != "mini-clip" else "apache-2.0"}
tags: [promptloop, text-to-image, {ROLES[role][2]}]
---

# {ROLES[role][0]}, trained by `promptloop train {recipe}`

{ROLES[role][1]}

```sh
{try_it(where, role, settings)}
```

| setting | value |
|---|---|
{chr(10).join(rows)}

| metric | first | last |
|---|---|---|
{chr(10).join(numbers)}

Made with {stack}.
"""
    (run / "README.md").write_text(text, encoding="utf-8")

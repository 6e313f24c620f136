"""How a trained policy is to be played: what its folder says of how it was trained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

from promptloop.names import HUB_ID, is_server
from promptloop.recipes import parts, runs
from promptloop.recipes.settings import Grpo
from promptloop.recipes.usual import usual

LOOPS: dict[bool | None, Literal["closed", "open"] | None] = {None: None, False: "closed", True: "open"}
FILE = "promptloop.json"  # beside the weights, so that it goes to the hub with them


@final
@dataclass(frozen=True)
class Played:
    """None: nothing is said of it. `window` is said only where it was not the backbone's usual one, since it
    belongs to the backbone.
    """

    refinements: int | None = None
    window: tuple[float, float] | None = None
    loop: Literal["closed", "open"] | None = None


def trained_as(settings: Grpo) -> Played:
    """How the policy of these settings was played in its training."""
    window = settings.window
    return Played(
        settings.refinements, None if window == usual(settings.backbone).window else window, settings.loop
    )


def write(folder: Path, played: Played) -> None:
    """Adds it to a policy's folder."""
    (folder / FILE).write_text(json.dumps(asdict(played), indent=1), encoding="utf-8")


def played(policy: Any, given: Played = Played()) -> Played:
    """What is `given`, and for what is not (None) what is said of the policy of this name."""
    if None not in asdict(given).values():
        return given
    said = said_of(policy)
    return Played(**{name: getattr(said, name) if told is None else told
                     for name, told in asdict(given).items()})  # fmt: skip


def said_of(policy: Any) -> Played:
    """What is said of a policy; nothing of an object, a server, or what no run has trained.

    ValueError naming the file where it cannot be read.
    """
    if not isinstance(policy, str) or policy == "none" or parts.DOTTED.fullmatch(policy) or is_server(policy):
        return Played()
    where, embedded = parts.locate(policy, "policy")
    if embedded:
        return Played()
    if Path(where).is_dir() and not (Path(where) / FILE).is_file():
        return before(Path(policy).expanduser())
    file = Path(where) / FILE if Path(where).is_dir() else from_hub(where)
    return Played() if file is None else read(file)


def before(run: Path) -> Played:
    """Of a run that an earlier version has trained: what its config says."""
    run = run if (run / runs.CONFIG).is_file() else run.parent
    if runs.TRAINS.get(recipe_of(run)) != runs.POLICY:
        return Played()
    its = runs.config_of(run)["settings"]
    window = tuple(its["window"]) if its.get("window") else None
    try:
        window = None if window == usual(its["backbone"]).window else window
    except ValueError:  # the backbone is no longer there, so nobody can say what is usual for it
        window = None
    return Played(its.get("refinements"), window, its.get("loop"))  # type: ignore[arg-type]


def recipe_of(run: Path) -> str:
    """The recipe of the run in a folder; "" where there is none."""
    file = run / runs.CONFIG
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        return ""
    return str(found.get("recipe", "")) if isinstance(found, dict) else ""


def read(file: Path) -> Played:
    """What the file says; ValueError where it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        window = found.get("window")
        return Played(found.get("refinements"), tuple(window) if window else None, found.get("loop"))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): put it back, or remove it") from None


def from_hub(where: str) -> Path | None:
    """The file of a policy on the hub; None where it has none, or where loading will say what is wrong."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(where, FILE)) if HUB_ID.fullmatch(where) else None
    except (EntryNotFoundError, HfHubHTTPError):
        return None

"""From a name to a reward, of images or of estimates, and to a network of golden noise."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptloop.names import DOTTED, imported, is_server, nearest
from promptloop.recipes import reward_words
from promptloop.rewards.known import KNOWN

if TYPE_CHECKING:
    import torch

    from promptloop.rewards.composite import Weighted

LEARNED = tuple(name for name, known in KNOWN.items() if known.where)  # NAME or NAME:WHERE


def reward_named(name: str, device: str | torch.device = "cpu") -> Any:
    """The reward `name` stands for: one of the embedded world's, a learned one ("imagereward:FOLDER_OR_ID"),
    the user's own ("module:name"), one that another process serves ("http://HOST:PORT#NAME"), or what is made
    of these ("rank(0.25*imagereward:DIR + 1*judge:DIR) if module:safe>=0.5"); ValueError with the nearest.
    """
    if reward_words.is_composed(name):
        return weighted(name, device)
    check_name(name)
    if is_server(name):
        from promptloop.rewards.remote import RemoteReward

        return RemoteReward.named(name)
    kind, _, where = name.partition(":")
    known = KNOWN.get(kind)
    if known is not None:
        made = imported(known.made, "reward")
        return made.load(finished(where) or None, device=device) if known.where else made()
    return own(name, "reward", "(images, queries)")


def finished(where: str) -> str:
    """`where`; of a run that has trained a reward, the reward in it. ValueError where it has not ended."""
    from promptloop.recipes import parts, runs

    folder = Path(where).expanduser()
    if where and parts.trained_role(folder) == runs.REWARD:
        if not (folder / runs.REWARD).is_dir():
            raise ValueError(f"the training run {where} has not ended, so it has no reward yet: go on with "
                             f"`promptloop train RECIPE --out {where} --resume`")  # fmt: skip
        return str(folder / runs.REWARD)
    return where


def check_name(name: str) -> None:
    """ValueError, with the nearest, for what is no name of a reward. Imports no reward."""
    kind, _, where = name.partition(":")
    known = KNOWN.get(kind)
    if is_server(name) or (known is not None and (":" not in name or (known.where and where))):
        return
    if known is None and DOTTED.fullmatch(name) and not mistyped(kind):
        return
    names = [*KNOWN, *(f"{learned}:{where}" for learned in LEARNED if where)]
    raise ValueError(f"no reward {name!r}; {nearest(name, names)} (or your own package.module:name)")


def check(said: str) -> None:
    """ValueError for what `reward_named` could not read, before anything heavy is imported."""
    for name in reward_words.names_in(said):
        check_name(name)


def early_reward_named(name: str, device: str | torch.device = "cpu") -> Any:
    """A reward of estimates that is told their level (controls.ttsnap.EarlyReward): the folder of a distilled
    one, the user's own ("module:name"), or None for "none".
    """
    if DOTTED.fullmatch(name):
        return own(name, "early", "(images, queries, level)")
    from promptloop.world.early_judge import EarlyJudge

    return None if name == "none" else EarlyJudge.load(name)


def golden_noise_named(name: str, device: str | torch.device = "cpu") -> Any:
    """A network of golden noise: a folder, a released .pth file, or the user's own ("module:name")."""
    if DOTTED.fullmatch(name):
        return own(name, "network", "(noise, text)")
    from promptloop.controls.npnet_weights import load

    return load(name, device=device)


def log_h_named(name: str, device: str | torch.device = "cpu") -> Any:
    """The folder of a log h, or the user's own ("module:name", that makes a LogH)."""
    from promptloop.controls.matching import LogH

    made = imported(name, "h")() if DOTTED.fullmatch(name) else LogH.load(name)
    return made.to(device).requires_grad_(False)


def own(name: str, role: str, called: str) -> Any:
    """What "module:name" stands for, or an instance of it; ValueError where it cannot be called."""
    made = imported(name, role)
    made = made() if isinstance(made, type) else made
    if not callable(made):
        raise ValueError(f"{role} {name!r} is a {type(made).__name__}; it must be callable: {called}")
    return made


def weighted(said: str, device: str | torch.device) -> Weighted:
    """The sum that is written out: its terms are named by what stands before the colon, where that is enough
    to tell them apart.
    """
    from promptloop.rewards.composite import Gate, Weighted

    written = reward_words.read(said)
    check(said)
    names = [name for _, name in written.terms]
    if len(set(names)) < len(names):
        raise ValueError(f"reward {said!r} has a term twice; add up its weights")
    called = shortened([*names, *(name for name, _, _ in written.gates)])
    made = {name: reward_named(name, device) for name in called}
    bounds: dict[str, dict[str, float]] = {}
    for name, sign, number in written.gates:
        side = "least" if sign == ">=" else "below"
        if side in bounds.setdefault(name, {}):
            raise ValueError(f"reward {said!r} has the gate {name}{sign} twice; leave one away")
        bounds[name][side] = number
    return Weighted(
        {called[name]: (weight, made[name]) for weight, name in written.terms},
        written.norm,  # type: ignore[arg-type]
        {called[name]: Gate(made[name], **sides) for name, sides in bounds.items()},
        written.shut,
    )


def own_scale(reward: Any, said: str) -> Any:
    """The reward; ValueError where an image's value depends on the others in the batch."""
    if getattr(reward, "compares", False):
        raise ValueError(
            f"reward {said!r} compares the images of a batch, and here each must have a value of its own; "
            "leave rank(...), z(...) and rewards of sets away, and weigh raw scales"
        )
    return reward


def shortened(names: list[str]) -> dict[str, str]:
    """Name -> what it is called in logs: what stands before its colon or after its #, unless two share it."""

    def short_of(name: str) -> str:
        kind = name.partition(":")[0]
        return name.rpartition("#")[2] if is_server(name) else kind if kind in LEARNED else name

    short = {name: short_of(name) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def mistyped(kind: str) -> bool:
    """Whether `kind` is nearly a learned reward's name and no module of the user's."""
    near = difflib.get_close_matches(kind, LEARNED, n=1, cutoff=0.8)
    return bool(near) and find_spec(kind.partition(".")[0]) is None

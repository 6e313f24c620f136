"""What a training has loaded, as one number for each part: a resumed run must load the same."""

from __future__ import annotations

import hashlib
from typing import Any

from promptloop.denoisers.loras import LoraSource, files
from promptloop.names import is_server
from promptloop.recipes import parts
from promptloop.recipes.digests import file_digest, folder_digest
from promptloop.recipes.reward_words import names_in
from promptloop.recipes.rewards import finished
from promptloop.rewards.known import KNOWN
from promptloop.world import weights

WORLDS = {"preference": "mini-judge", "mini-clip": "mini-clip"}  # reward -> the embedded model it is
ROLES = {"backbone": "backbone", "policy": "policy", "first": "policy"}  # setting -> what it names


def digests(settings: Any) -> dict[str, str]:
    """Setting ("backbone", "policy", "first", "reward") -> sha256 of what was loaded for it. What has no
    weights is left out: your own Python, the oracle.
    """
    found = {}
    for name, role in ROLES.items():
        said = getattr(settings, name, "none")
        if said != "none" and not parts.DOTTED.fullmatch(said) and not is_server(said):
            found[name] = parts.digest(parts.lora_here(parts.locate(said, role)[0]), role)
    for source, file in files(
        [LoraSource.parse(text) for text in getattr(settings, "loras", list)()]
    ).values():
        found[f"lora {source.name}"] = file_digest(file)
    if known := [number for number in map(of_reward, names_in(settings.reward)) if number]:
        found["reward"] = hashlib.sha256(" ".join(known).encode()).hexdigest()
    return found


def of_reward(name: str) -> str | None:
    """sha256 of the files that decide one reward's values; None where it has none of ours."""
    kind, _, said = name.partition(":")
    where = finished(said)
    if name in WORLDS:
        return folder_digest(weights(WORLDS[name]))
    if kind in ("judge", "rating", "unifiedreward"):
        return None if is_server(where) else parts.digest(where, "policy")
    if kind == "safety":
        from promptloop.rewards.safety import checker_in

        return parts.digest(checker_in(where or None), "policy")
    if name in ("vendi", "frechet"):
        return folder_digest(weights("mini-unet") / "vae")
    made = parts.imported(KNOWN[kind].made, "reward") if kind in KNOWN and KNOWN[kind].where else None
    if made is None:
        return None
    digests = [file_digest(file) for file in made.read_from(where or None)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()

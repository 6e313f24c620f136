"""What a GRPO run refuses before anything is loaded, since it would fail late or mislead; and its prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from promptloop.names import HUB_ID, is_server
from promptloop.processes import Processes
from promptloop.recipes import parts, real, runs
from promptloop.recipes.prompts import Prompts, prompts_from
from promptloop.recipes.settings import EMBEDDED, Grpo
from promptloop.recipes.tracking import check as check_tracker
from promptloop.recipes.usual import told_by


def launched(settings: Grpo, device: torch.device) -> Processes:
    """The processes of the run; ValueError for settings that do not go with their number."""
    processes = Processes.launched(device)
    if ":" in settings.device and processes.share.of > 1:
        raise ValueError(
            f"device is {settings.device!r}; with several processes each takes its own: give cuda"
        )
    if settings.shard and processes.share.of == 1:
        raise ValueError("shard divides the policy among processes, and there is one: start it with torchrun "
                         "--nproc-per-node N -m promptloop train ...")  # fmt: skip
    return processes


def checked(settings: Grpo) -> None:
    """ValueError for names that lead nowhere, and for what cannot be done with what they lead to."""
    parts.locate(settings.backbone, "backbone")
    if settings.policy == "none":
        raise ValueError("policy 'none' has nothing to train; give mini-vlm, a chat model or a run's folder")
    if parts.DOTTED.fullmatch(settings.policy):
        raise ValueError(f"policy {settings.policy!r} is Python, whose weights this recipe does not know; "
                         "give mini-vlm, a chat model's folder or hub id, or a run's folder")  # fmt: skip
    if is_server(settings.policy) or is_server(settings.first):
        raise ValueError("a server's weights are not here, so they cannot be trained; give mini-vlm, a chat "
                         "model's folder or hub id, or a run's folder")  # fmt: skip
    where = Path(parts.locate(settings.policy, "policy")[0])
    if parts.lora_base(where) is not None:
        its_own_lora(settings)
    if settings.first != "none":
        parts.locate(settings.first, "policy")
    elif (where / runs.FIRST).is_dir():
        raise ValueError(f"the first draft of policy {settings.policy!r} is another's: go on with it by "
                         f"--first {where / runs.FIRST}")  # fmt: skip
    check_tracker(settings.track)
    if settings.push_to_hub != "none" and not HUB_ID.fullmatch(settings.push_to_hub):
        raise ValueError(f"push_to_hub is {settings.push_to_hub!r}; give owner/name, or none")
    if settings.push_to_hub != "none" and settings.train_weights == "lora" and where_is_here(settings):
        raise ValueError(f"a LoRA of {settings.policy} would be of no use to others: that folder is "
                         "here alone; give mini-vlm or a hub id, or --train-weights all")  # fmt: skip


def foreign(recipe: str, backbone: str) -> str:
    """What to say of a backbone of another family than the recipe's settings are for; "" where it is that."""
    wanted, found = real.PIPELINES.get(recipe), told_by(parts.family_of(backbone)).pipeline
    if wanted is None or not found or found == wanted:
        return ""
    return (f"the settings of {recipe} are for a {wanted}, but {backbone} is a {found}: give its own "
            "--denoising-steps, --guidance, --refinements and --max-new-tokens")  # fmt: skip


def prompts_of(settings: Grpo, say: Callable[[str], None]) -> Prompts | None:
    """The prompts to train on; None: the embedded world's."""
    if settings.prompts == EMBEDDED:
        return None
    return prompts_from(settings.prompts, column=settings.prompt_column, split=settings.prompt_split,
                        chars=settings.prompt_chars, seed=settings.seed, say=say)  # fmt: skip


def its_own_lora(settings: Grpo) -> None:
    """Refuses what cannot be done with a policy that is a LoRA already."""
    if settings.train_weights == "all":
        raise ValueError(f"policy {settings.policy!r} is a LoRA; only that can be trained, not all weights")
    if settings.kl_weight and settings.kl_to == "reference":
        raise ValueError(
            f"policy {settings.policy!r} has a LoRA already: without it, it is not the policy this training "
            "begins with, so there is no reference to hold to; give --kl-to old, or --policy mini-vlm"
        )


def where_is_here(settings: Grpo) -> bool:
    """Whether the policy is a folder of the user's, or a LoRA of one."""
    name: str | None = settings.policy
    while name is not None:
        where, embedded = parts.locate(name, "policy")
        if embedded or not Path(where).is_dir():
            return False
        last, name = name, parts.lora_base(Path(where))
    return last not in parts.NAMES["policy"]

"""What `promptloop train mini` refuses before anything is loaded: it would fail late or mislead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from promptloop.names import HUB_ID
from promptloop.processes import Processes
from promptloop.recipes import parts, runs
from promptloop.recipes.tracking import check as check_tracker
from promptloop.rewards.contract import Reward

if TYPE_CHECKING:
    from promptloop.recipes.mini import Mini


def launched(settings: Mini, device: torch.device) -> Processes:
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


def judges(settings: Mini) -> tuple[Reward, Reward | None]:
    """The reward and the gold; names that lead nowhere are refused before any network is loaded."""
    parts.locate(settings.backbone, "backbone")
    if settings.policy == "none":
        raise ValueError("policy 'none' has nothing to train; give mini-vlm, a chat model or a run's folder")
    if parts.DOTTED.fullmatch(settings.policy):
        raise ValueError(f"policy {settings.policy!r} is Python, whose weights this recipe does not know; "
                         "give mini-vlm, a chat model's folder or hub id, or a run's folder")  # fmt: skip
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
    return reward_named(settings.reward), None if settings.gold == "none" else reward_named(settings.gold)


def its_own_lora(settings: Mini) -> None:
    """Refuses what cannot be done with a policy that is a LoRA already."""
    if settings.train_weights == "all":
        raise ValueError(f"policy {settings.policy!r} is a LoRA; only that can be trained, not all weights")
    if settings.kl_weight and settings.kl_to == "reference":
        raise ValueError(
            f"policy {settings.policy!r} has a LoRA already: without it, it is not the policy this training "
            "begins with, so there is no reference to hold to; give --kl-to old, or --policy mini-vlm"
        )


def where_is_here(settings: Mini) -> bool:
    """Whether the policy is a folder of the user's, or a LoRA of one."""
    name: str | None = settings.policy
    while name is not None:
        where, embedded = parts.locate(name, "policy")
        if embedded or not Path(where).is_dir():
            return False
        last, name = name, parts.lora_base(Path(where))
    return last not in parts.NAMES["policy"]

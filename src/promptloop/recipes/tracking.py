"""Metrics of a run in one line, and for TensorBoard, trackio or Weights & Biases through accelerate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDS = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
Log = Callable[[dict[str, float], int], None]


def check(name: str) -> None:
    """ValueError where the tracker's package is not installed. "none" needs none."""
    if name != "none" and not any(find_spec(package) for package in NEEDS[name]):
        raise ValueError(f"track is {name!r}, but it is not installed: pip install {NEEDS[name][-1]}")


def told(line: dict[str, float]) -> str:
    """What the progress says of an update."""
    whole = {"reward": "reward", "headroom": "headroom", "kl": "KL", "ratio": "ratio", "kept": "kept",
             "refused": "refused", "queries_cut": "queries cut"}  # fmt: skip
    shown = [
        f"{name} {line[key]:.3g}"
        for key, name in whole.items()
        if key in line and (key not in ("queries_cut", "refused") or line[key])
    ]
    spent = [
        f"{key.removeprefix('seconds/')} {line[key]:.1f} s" for key in line if key.startswith("seconds/")
    ]
    return ", ".join([*shown, f"{line['tokens_per_draft']:.1f} tokens a draft", *spent])


def idle(line: dict[str, float]) -> str:
    """Why an update has taught nothing; "" where it has."""
    if line.get("refused") == 1:
        return ("every draft was refused (empty, overlong or unparsable), so no prompt was changed; give a "
                "larger --max-new-tokens, or another policy")  # fmt: skip
    if line.get("groups_dropped") == 1:
        return "in every group all rewards are the same, so nothing was learned; look at --reward"
    return ""


def tracker(name: str, run: Path, settings: Any) -> tuple[Log, Callable[[], None]]:
    """(log, end): `log(metrics, update)` writes one line, `end()` closes. "none": both do nothing."""
    if name == "none":
        return lambda line, update: None, lambda: None
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=name, project_dir=run / "tracking")
    plain = (int, float, str, bool)
    config = {key: v if isinstance(v, plain) else str(v) for key, v in asdict(settings).items()}
    accelerator.init_trackers("promptloop", config=config)

    def end() -> None:  # accelerator.end_training would also end the group of processes
        for one in accelerator.trackers:
            one.finish()

    return lambda line, update: accelerator.log(line, step=update), end


def push(run: Path, policy: Path, repo: str) -> str:
    """Uploads the policy and the run's card to the hub's `repo` ("owner/name"); its address."""
    from huggingface_hub import HfApi

    hub = HfApi()
    hub.create_repo(repo, exist_ok=True)
    hub.upload_file(path_or_fileobj=run / "README.md", path_in_repo="README.md", repo_id=repo)
    return str(hub.upload_folder(folder_path=policy, repo_id=repo, ignore_patterns=["README.md"]))

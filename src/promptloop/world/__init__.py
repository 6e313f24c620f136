"""The embedded world: a small text-to-image universe with exact answers, and the models trained on it."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"

BACKBONES = ("mini-unet", "mini-flow", "mini-turbo")
CHATS = ("mini-vlm",)
MODELS = (*BACKBONES, *CHATS)  # of what build.py makes, those that ship
MADE_FROM_THEM = (
    "mini-judge",  # a learned reward (judge.py)
    "mini-clip",  # what rewards of two towers are learned from (clip.py)
    "mini-policy",  # mini-vlm trained by GRPO
)
ELSEWHERE = {"mini-policy": "studies/image-0"}  # it is one of the studies' policies


def weights(name: str) -> Path:
    """Folder of the embedded model ``name``: a diffusers pipeline, a chat model, its LoRA, a judge."""
    known = MODELS + MADE_FROM_THEM
    folder = WEIGHTS / ELSEWHERE.get(name, name)
    if name not in known or not folder.is_dir():
        raise ValueError(f"no embedded model {name!r}; embedded models: {', '.join(known)}")
    return folder


def study(name: str, seed: int) -> Path:
    """Folder of the LoRA (of mini-vlm, or of a backbone) that a study trained as ``name`` with ``seed``."""
    folder = WEIGHTS / "studies" / f"{name}-{seed}"
    if not folder.is_dir():
        there = ", ".join(sorted(f.name for f in folder.parent.glob("*"))) or "none"
        raise ValueError(
            f"no trained weights {folder.name!r} (there: {there}); `promptloop reproduce --train` trains it"
        )
    return folder

"""The embedded world: a small text-to-image universe with exact answers, and the models trained on it."""

from pathlib import Path

MODELS = ("mini-unet", "mini-flow", "mini-vlm")


def weights(name: str) -> Path:
    """Folder of the embedded model ``name``; a diffusers pipeline or a transformers chat model."""
    folder = Path(__file__).parent / "weights" / name
    if name not in MODELS or not folder.is_dir():
        raise ValueError(f"no embedded model {name!r}; embedded models: {', '.join(MODELS)}")
    return folder

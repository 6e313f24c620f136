"""A judge that was distilled to read estimates: what mini-judge will say of the image that one becomes.

One judge for each noise level that it was taught at, over mini-judge's frozen eyes and ears (TTSnap, arXiv
2511.22242, "noise-aware fine-tuning"). benchmarks/ttsnap.py makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from torch import Tensor

from promptloop.schedules import Level
from promptloop.world.judge import Judge, Senses, Size

FILE, CONFIG = "early.safetensors", "early.json"


@final
class EarlyJudge:
    """Estimates [B, 3, H, W] in [0, 1], queries and the level they were made at, to [B], mini-judge's scale.

    Of its judges the one answers that was taught at the nearest share of noise (`Level.share`). senses: the
    frozen encoders, where they are loaded already.
    """

    def __init__(self, judges: Mapping[float, Judge], senses: Senses | None = None) -> None:
        if not judges:
            raise ValueError("an EarlyJudge needs a judge for at least one share of noise")
        self.judges = {share: judge.eval().requires_grad_(False) for share, judge in judges.items()}
        self.senses = Senses() if senses is None else senses

    def __call__(self, images: Tensor, queries: Sequence[str], level: Level) -> Tensor:
        nearest = min(self.judges, key=lambda share: abs(share - level.share))
        return self.judges[nearest](self.senses.see(images.cpu()), *self.senses.hear(queries))

    def save(self, folder: str | Path) -> None:
        """Writes early.safetensors and early.json."""
        from safetensors.torch import save_file

        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        told = [*self.judges.items()]
        tensors = {
            f"{k}.{n}": t.half() for k, (_, one) in enumerate(told) for n, t in one.state_dict().items()
        }
        save_file(tensors, where / FILE)
        config = {"shares": [*self.judges], "size": vars(told[0][1].size), "senses": self.senses.digest()}
        (where / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")

    @staticmethod
    def load(folder: str | Path, senses: Senses | None = None) -> EarlyJudge:
        """What `save` wrote; ValueError for another folder, or where the embedded encoders have changed."""
        from safetensors.torch import load_file

        where = Path(folder).expanduser()
        if not (where / CONFIG).is_file():
            raise ValueError(f"no early judge at {folder}; `python benchmarks/ttsnap.py --out DIR` makes one")
        config = json.loads((where / CONFIG).read_text(encoding="utf-8"))
        tensors, judges = load_file(where / FILE), {}
        for k, share in enumerate(config["shares"]):
            judges[share] = Judge(Size(**config["size"]))
            own = {n.partition(".")[2]: t.float() for n, t in tensors.items() if n.startswith(f"{k}.")}
            judges[share].load_state_dict(own)
        made = EarlyJudge(judges, senses)
        if config["senses"] != made.senses.digest():
            raise ValueError(f"{folder} was made with other encoders than mini-vlm and mini-unet have "
                             "here; make it again: python benchmarks/ttsnap.py --out DIR")  # fmt: skip
        return made

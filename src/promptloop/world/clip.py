"""mini-clip: a CLIP of the embedded world, taught by contrast alone, as CLIP was by the web.

Its towers are those of shipped models that had not met: mini-vlm's eyes and mini-unet's text encoder. In a
batch of scenes and descriptions each is to be found among the others (InfoNCE, Radford et al., arXiv
2103.00020). Such a CLIP knows what is there and seldom who has which colour or stands where, since few
batches ask it: rewards are learned from it (`promptloop train mini-reward`).

    python -m promptloop.world.clip --out build/mini-clip --seed 0
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.rewards.clip import PickScore
from promptloop.rewards.words import FILE, Words
from promptloop.world import weights
from promptloop.world.captions import describe
from promptloop.world.fit import command, fit
from promptloop.world.lessons import user_says
from promptloop.world.render import render
from promptloop.world.scene import random_scene

SHARED = 128  # width of the space that pictures and texts share
SCENES, STEPS, BATCH = 16_000, 2000, 128
HELD = 512  # scenes that the check is made with
SHARPEST = math.log(100.0)  # of the temperature, CLIP's own bound


def mini_clip() -> PickScore:
    """The shipped one as a reward, frozen, on the CPU: cosine times exp(scale)."""
    made = PickScore.load(str(weights("mini-clip")))
    object.__setattr__(made, "__name__", "mini-clip")  # what errors call it
    return made


def unmet(seed: int) -> PickScore:
    """The towers side by side, in float32; their two projections are a function of the seed."""
    from transformers import AutoModelForImageTextToText, CLIPTextModel
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    folder = weights("mini-unet")
    eyes = AutoModelForImageTextToText.from_pretrained(weights("mini-vlm"), dtype=torch.float32)
    vision = eyes.model.vision_tower
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    words = Words.load(folder / "tokenizer" / FILE, length=text.config.max_position_embeddings,
                       end="<|endoftext|>")  # fmt: skip
    reads, sees = (
        {name: value for name, value in part.config.to_dict().items() if name != "_name_or_path"}
        for part in (text, vision)
    )
    config = CLIPConfig(text_config=reads | {"eos_token_id": words.end}, vision_config=sees,
                        projection_dim=SHARED)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CLIPModel(config)
    for tower, found in ((network.vision_model, vision), (network.text_model, text)):
        within = getattr(found, "vision_model", getattr(found, "text_model", found))
        tower.load_state_dict(within.state_dict())
    return PickScore(network.float().eval(), words)


@final
class Described:
    """Scenes as bytes [N, 3, 64, 64]; what is said of one is drawn anew each time it is asked for."""

    def __init__(self, stream: str, count: int) -> None:
        self.stream = stream
        self.scenes = [random_scene(random.Random(f"{stream}/{k}")) for k in range(count)]
        self.pixels = torch.from_numpy(render(self.scenes)).permute(0, 3, 1, 2).contiguous()

    def said(self, rows: list[int], turn: int) -> list[str]:
        """A description of each, in a user's words; a function of the row and the turn."""
        made = []
        for row in rows:
            rng = random.Random(f"{self.stream}/{row}/{turn}")
            made.append(user_says(describe(self.scenes[row], rng, dense=0.7, curated=True), rng))
        return made


def contrast(reward: PickScore, images: Tensor, texts: list[str]) -> Tensor:
    """Scaled cosines [B, B] of every picture with every text."""
    seen, said = reward.seen(reward.pixels(images)), reward.said(reward.ids(texts))
    return reward.network.logit_scale.clamp(max=SHARPEST).exp() * seen @ said.T


def train(out: Path, *, seed: int, scenes: int = SCENES, steps: int = STEPS) -> dict[str, float]:
    """Trains and saves in `out` (float16, in the layout of a released PickScore); how often one scene of 64
    is found by what is said of it.
    """
    reward = unmet(seed)
    reward.network.requires_grad_(True)
    shown, held = Described(f"{seed}/clip", scenes), Described(f"{seed}/clip/held", min(HELD, scenes))

    def loss_at(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed + 7919 * step)
        rows = torch.randint(scenes, (BATCH,), generator=rng).tolist()
        logits = contrast(reward, shown.pixels[rows].float() / 255, shown.said(rows, step))
        target = torch.arange(BATCH)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    @torch.no_grad()
    def check(step: int) -> dict[str, float]:
        right, size = [], 64
        for first in range(0, len(held.scenes), size):
            rows = list(range(first, min(first + size, len(held.scenes))))
            logits = contrast(reward, held.pixels[rows].float() / 255, held.said(rows, 0))
            right.append((logits.argmax(0) == torch.arange(len(rows))).float())
        return {"found": round(float(torch.cat(right).mean()), 4)}

    fit(reward.network, loss_at, steps=steps, lr=1e-3, seed=seed, folder=out, average=0.998,
        weight_decay=0.05, check=check, check_every=250)  # fmt: skip
    found = check(steps)
    reward.half().save(out / "model")
    told = {"seed": seed, "scenes": scenes, "steps": steps, "batch": BATCH, **found}
    (out / "model" / "training.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    return found


if __name__ == "__main__":
    command(__doc__, train)

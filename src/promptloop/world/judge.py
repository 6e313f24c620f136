"""mini-judge: a learned, imperfect preference reward, trained on noisy pairs. Gold is the oracle.

A user's reward is learned from people's choices, and errs. This one is learned by Bradley and Terry's loss
from pairs of rendered scenes for one query, of which one in five has its label turned; it never saw an image
of a backbone. It reads with frozen eyes (mini-vlm's vision tower) and ears (mini-unet's text encoder).

    python -m promptloop.world.judge --out build/mini-judge --seed 0
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptloop.world import weights
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import Ask, describe
from promptloop.world.fit import command, fit
from promptloop.world.lessons import near_miss, user_says
from promptloop.world.oracle import grade
from promptloop.world.scene import Scene, random_scene, random_thing

PAIRS, STEPS, BATCH = 12_000, 500, 96  # more steps learn the turned labels by heart
TURNED = 0.2  # share of the pairs whose label is wrong
FILE, CONFIG = "judge.safetensors", "config.json"


@final
@dataclass(frozen=True)
class Size:
    """Widths of the frozen encoders and of the judge."""

    vision: int = 192
    text: int = 128
    width: int = 96
    layers: int = 2


@final
class Judge(nn.Module):
    """Words look at patches; the mean over the words is the score."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.patches = nn.Sequential(nn.LayerNorm(size.vision), nn.Linear(size.vision, size.width))
        self.words = nn.Linear(size.text, size.width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(size.width, 4, 2 * size.width, 0.0, batch_first=True, norm_first=True)
            for _ in range(size.layers)
        )
        self.score = nn.Sequential(nn.LayerNorm(size.width), nn.Linear(size.width, 1))

    def forward(self, patches: Tensor, words: Tensor, spoken: Tensor) -> Tensor:
        """[B] of patches [B, P, vision], words [B, W, text] and the mask [B, W] of words that are spoken."""
        seen, said = self.patches(patches), self.words(words)
        for layer in self.layers:
            said = layer(said, seen, tgt_key_padding_mask=~spoken)
        each = self.score(said)[..., 0] * spoken
        return each.sum(1) / spoken.sum(1)


@final
class Senses:
    """The frozen encoders."""

    def __init__(self) -> None:
        from transformers import AutoModelForImageTextToText, AutoTokenizer, CLIPTextModel

        whole: Any = AutoModelForImageTextToText.from_pretrained(weights("mini-vlm"), dtype=torch.float32)
        self.vision = whole.model.vision_tower.eval().requires_grad_(False)
        folder = weights("mini-unet")
        text: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.text = text.eval().requires_grad_(False)
        self.spell = AutoTokenizer.from_pretrained(folder / "tokenizer")

    def digest(self) -> str:
        """The first digits of the sha256 of the encoders' weights: a judge reads no other features."""
        found = hashlib.sha256()
        for part in (self.vision, self.text):
            for name, weight in sorted(part.state_dict().items()):
                found.update(name.encode() + weight.half().cpu().numpy().tobytes())
        return found.hexdigest()[:16]

    def see(self, images: Tensor) -> Tensor:
        """[B, P, vision] of images [B, 3, H, W] in [0, 1]; gradients flow to the images."""
        return self.vision(pixel_values=images.float() * 2 - 1).last_hidden_state

    @torch.no_grad()
    def hear(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Words [B, W, text] and their mask."""
        ids = self.spell(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return self.text(ids.input_ids)[0], ids.attention_mask.bool()


@final
class JudgeReward:
    """The judge as a reward: raw Bradley-Terry scores [B], about -4 to 4, not calibrated, CPU."""

    differentiable = True

    def __init__(self, folder: str | Path | None = None) -> None:
        from safetensors.torch import load_file

        where = weights("mini-judge") if folder is None else Path(folder)
        config = json.loads((where / CONFIG).read_text(encoding="utf-8"))
        self.judge = Judge(Size(**config["size"])).eval().requires_grad_(False)
        self.judge.load_state_dict({name: t.float() for name, t in load_file(where / FILE).items()})
        self.senses = Senses()
        if config["senses"] != self.senses.digest():
            raise ValueError(
                f"{where} was trained with other encoders than the installed mini-vlm and mini-unet have; "
                "train it again: python -m promptloop.world.judge --out DIR"
            )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.judge(self.senses.see(images.cpu()), *self.senses.hear(prompts))


# --- training


def changed(scene: Scene, rng: random.Random) -> Scene:
    """`scene` with one or two things gone, or another in their place."""
    things = list(scene.things)
    for _ in range(rng.choice((1, 1, 2))):
        k = rng.randrange(len(things))
        if rng.random() < 0.3 and len(things) > 1:
            things.pop(k)
            continue
        other = random_thing(rng, things[k].column, things[k].row)
        name = rng.choice(("shape", "colour", "pattern", "size", "outlined"))
        change: Any = {name: getattr(other, name)}
        things[k] = replace(things[k], **change) if rng.random() < 0.75 else other
    return replace(scene, things=tuple(things))


def pair(seed: int, index: int | str) -> tuple[str, Ask, Scene, Scene]:
    """A query and two scenes, of which one may fit it better."""
    rng = random.Random(f"{seed}/judge/{index}")
    scene = random_scene(rng)
    ask = near_miss(scene, rng) if rng.random() < 0.5 else describe(scene, rng, dense=0.6)
    other = changed(scene, rng) if rng.random() < 0.75 else random_scene(rng)
    first, second = (scene, other) if rng.random() < 0.5 else (other, scene)
    return user_says(ask, rng), ask, first, second


def pairs(senses: Senses, seed: int, rows: Sequence[int | str]) -> dict[str, Tensor]:
    """Features of the pairs that the oracle tells apart, and by how much the first is better."""
    made = [pair(seed, row) for row in rows]
    parts: list[dict[str, Tensor]] = []
    for k in range(0, len(made), 200):
        some = made[k : k + 200]
        images = [pixels([p[2] for p in some]) * 0.5 + 0.5, pixels([p[3] for p in some]) * 0.5 + 0.5]
        gold = [grade(x, [p[1] for p in some]).soft for x in images]
        words, spoken = senses.hear([p[0] for p in some])
        part = {"first": senses.see(images[0]).half(), "second": senses.see(images[1]).half(),
                "words": words.half(), "spoken": spoken, "better": gold[0] - gold[1]}  # fmt: skip
        told = part["better"].abs() > 0.02
        parts.append({name: t[told] for name, t in part.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def train(out: Path, *, seed: int, count: int = PAIRS, steps: int = STEPS) -> dict[str, float]:
    """Trains a judge on noisy labels and saves it in `out`; the held-out accuracy against the oracle."""
    from safetensors.torch import save_file

    senses = Senses()
    rows = pairs(senses, seed, range(count))
    held = pairs(senses, seed, [f"held/{i}" for i in range(800)])
    turn = torch.rand(len(rows["better"]), generator=torch.Generator().manual_seed(seed)) < TURNED
    label = ((rows["better"] > 0) ^ turn).float()
    torch.manual_seed(seed)
    judge = Judge(Size())

    def scores(of: dict[str, Tensor], index: Tensor) -> Tensor:
        words, spoken = of["words"][index].float(), of["spoken"][index]
        first, second = (judge(of[side][index].float(), words, spoken) for side in ("first", "second"))
        return first - second

    def loss_at(step: int) -> Tensor:
        index = torch.randint(
            len(label), (BATCH,), generator=torch.Generator().manual_seed(seed + 7919 * step)
        )
        return F.binary_cross_entropy_with_logits(scores(rows, index), label[index])

    def check(step: int) -> dict[str, float]:
        right = (scores(held, torch.arange(len(held["better"]))) > 0) == (held["better"] > 0)
        return {"accuracy": round(right.float().mean().item(), 4)}

    fit(judge, loss_at, steps=steps, lr=1e-3, seed=seed, folder=out, average=0.998, weight_decay=0.05,
        check=check, check_every=500)  # fmt: skip
    with torch.no_grad():
        found = check(steps)
    save_file({name: t.half().contiguous() for name, t in judge.state_dict().items()}, out / FILE)
    config = {
        "size": vars(judge.size),
        "senses": senses.digest(),
        "seed": seed,
        "pairs": count,
        "steps": steps,
        "turned": TURNED,
    }
    (out / CONFIG).write_text(json.dumps({**config, **found}, indent=1), encoding="utf-8")
    return found


if __name__ == "__main__":
    command(__doc__, train)

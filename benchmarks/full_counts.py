"""How many operations a refinement costs beside a step, at the published sizes, counted without a device.

    python benchmarks/full_counts.py [--batch 8] [--tokens 48] [--matrix 989e12 --memory 3.35e12]

Counted on networks without weights (torch's meta device); the policy's eyes need real numbers to find their
windows, so they look at one image on the CPU (a minute, 2 GB). `--matrix` and `--memory` are a device's
operations and bytes a second (the defaults are an H100 SXM's nominal bf16 rates); what follows from them is
arithmetic, not a measurement: no device keeps its nominal rates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import shapes
from floor import operations
from full_size_tables import table

from promptloop.denoisers import from_pipeline
from promptloop.policies.contract import Request
from promptloop.policies.message import messages

META, DTYPE = "meta", torch.bfloat16
STEPS = {"sdxl": 50, "sd3.5-medium": 28}


@final
@dataclass(frozen=True)
class Writing:
    """Operations for a batch to read its messages and to write one token, and bytes read for a token."""

    read: int
    token: int
    bytes: int
    length: int


def message(policy: Any, side: int) -> dict[str, torch.Tensor]:
    """One request with an estimate, as the policy's processor encodes it."""
    request = Request(shapes.QUERIES[0], " ".join(shapes.words()[-47:]), None, 0.5)
    picture = torch.zeros(side, side, 3, dtype=torch.uint8).numpy()
    shown = Request(request.query, request.prompt, torch.zeros(3, side, side), 0.5)
    text = policy.processor.apply_chat_template(messages(shown), add_generation_prompt=True)
    return policy.processor(text=[text], images=[[picture]], return_tensors="pt")


@torch.no_grad()
def writing(small: shapes.Shapes, batch: int, tokens: int) -> Writing:
    """What the policy does for `batch` messages."""
    policy = shapes.policy(small, META, DTYPE, tokens)
    network, encoded = policy.network, message(policy, small.picture)
    kind, settings = type(network.model.visual), network.config.vision_config
    with shapes.made_on("cpu", DTYPE):
        eyes = kind(settings)
    seen = operations(lambda: eyes(encoded["pixel_values"].to(DTYPE), grid_thw=encoded["image_grid_thw"]))
    length, width = encoded["input_ids"].shape[1], network.config.text_config.hidden_size

    def read(count: int) -> int:
        """Of `count` tokens from an empty cache, and the logits of the last."""
        embedded = torch.empty(batch, count, width, device=META, dtype=DTYPE)
        places = torch.zeros(3, batch, count, dtype=torch.long, device=META)
        states = network.model.language_model(inputs_embeds=embedded, position_ids=places, use_cache=False)
        return network.lm_head(states.last_hidden_state[:, -1:]).shape[0]

    told = operations(lambda: read(length))
    language = sum(p.numel() for p in network.model.language_model.parameters())  # its head is its embedding
    return Writing(batch * seen + told, operations(lambda: read(1)), 2 * language, length)


@torch.no_grad()
def sampling(name: str, small: shapes.Shapes, batch: int) -> tuple[int, int, int]:
    """Operations of a guided step, of decoding a batch, and of embedding its prompts."""
    denoiser = from_pipeline(shapes.BACKBONES[name](small, META, DTYPE))
    x = torch.empty(2 * batch, *denoiser.latent_shape, device=META)
    level, asked = denoiser.levels(STEPS[name])[1], shapes.QUERIES[:batch]
    cond = denoiser.embed([*asked, *asked])
    return (
        operations(lambda: denoiser.clean(x, level, cond)),
        operations(lambda: denoiser.decode(x[:batch])),
        operations(lambda: denoiser.embed(asked)),
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=sorted(shapes.SIZES), default="full")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--matrix", type=float, default=989e12)
    parser.add_argument("--memory", type=float, default=3.35e12)
    options = parser.parse_args(arguments)
    small, batch = shapes.SIZES[options.size], options.batch
    policy = writing(small, batch, options.tokens)
    print(f"operations for a batch of {batch}; messages of {policy.length} tokens, picture included\n")
    found: dict[str, Any] = {"policy": policy, "ratio": {}}
    rows = []
    for name in shapes.BACKBONES:
        step, decoded, embedded = found[name] = sampling(name, small, batch)
        whole = STEPS[name] * step + decoded + embedded
        draft = policy.read + options.tokens * policy.token
        seconds = policy.read / options.matrix + options.tokens * policy.bytes / options.memory
        row: list[Any] = [name, STEPS[name], float(step), decoded / step, embedded / step, draft / step]
        for n in (1, 3, 5):
            more = n * (draft + embedded) + (n - 1) * decoded  # the first is written without an estimate
            floor = n * seconds + (n * embedded + (n - 1) * decoded) / options.matrix
            ratio = found["ratio"][name, n] = (1 + more / whole, 1 + floor * options.matrix / whole)
            row.append(f"{ratio[0]:.3f} / {ratio[1]:.3f}")
        rows.append(row)
    head = ["backbone", "steps", "a guided step", "estimates decoded, in steps", "prompts embedded, in steps",
            "drafts, in steps", *(f"{n} refinements: operations / floor" for n in (1, 3, 5))]  # fmt: skip
    print(table(head, rows))
    print(f"a token: {policy.token:.3g} operations, {policy.bytes / 1e9:.3g} GB of weights")
    return found


if __name__ == "__main__":
    main()

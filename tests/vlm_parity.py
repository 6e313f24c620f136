"""`python tests/vlm_parity.py`: the parity columns of docs/models.md's policies, measured on tiny ones."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import tiny_vlm
import torch

from promptloop.objectives.mismatch import gaps
from promptloop.policies import Mllm, Request
from promptloop.policies.message import messages


def requests() -> list[Request]:
    image = torch.rand(3, 40, 52, generator=torch.Generator().manual_seed(0))
    long = "two small red circles left of a large blue striped star"
    return [
        Request("a dog", "a dog"),
        Request(long, "a star", image, 0.4),
        Request("a cat", long, image, 0.7),
        Request(long, long, None, 0.6),
    ]


@torch.no_grad()
def measured(folder: Path) -> tuple[float, float, int, int]:
    """Largest |recomputed - recorded| and |alone - batched| of a log-prob; greedy drafts as `generate`'s."""
    policy = Mllm.load(folder, max_new_tokens=16)
    asked = [request for request in requests() for _ in range(8)]
    drafts = policy.write(asked, range(len(asked)))
    again, _ = policy.log_prob(drafts)
    off = [float(gap.abs().max()) for gap in gaps(drafts, again)]
    apart = [policy.write([request], [i])[0] for i, request in enumerate(asked)]
    alone = [float((a.log_probs - d.log_probs).abs().max()) for a, d in zip(apart, drafts, strict=True)]
    greedy = replace(policy, temperature=0.0).write(requests(), [0] * 4)
    equal = 0
    for request, draft in zip(requests(), greedy, strict=True):
        text = policy.processor.apply_chat_template(messages(request), add_generation_prompt=True)
        shown = request.estimate
        image = None if shown is None else [(shown * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()]
        inputs = policy.processor(text=[text], images=image, return_tensors="pt")
        options = {"do_sample": False, "top_k": None, "temperature": None, "max_new_tokens": 16}
        out = policy.network.generate(**inputs, **options, suppress_tokens=list(policy.sampling.never))
        equal += torch.equal(out[0, inputs["input_ids"].shape[1] :], draft.tokens)
    return max(off), max(alone), equal, len(greedy)


if __name__ == "__main__":
    for family in (*tiny_vlm.FAMILIES, *tiny_vlm.MORE):
        with tempfile.TemporaryDirectory() as root:
            off, alone, equal, of = measured(tiny_vlm.build(family, Path(root) / family))
        print(f"{family}: recomputed {off:.1e}, alone {alone:.1e}, greedy {equal} of {of}", flush=True)

"""How much of what there is does mini-vlm see, when it is asked, and how much of what an estimate lacks?

    OMP_NUM_THREADS=1 python benchmarks/sight.py --backbone mini-turbo --at 2 4 6

"What is there?" about 200 rendered scenes: the share of things named in shape and colour. Then "Wanted: ...
What is missing or wrong?" about estimates of 98 training-side queries (those without a relation; the query
alone as prompt, noise seeds 0 and up), answered greedily, against what the oracle's eyes find. And last how
often it keeps the prompt where nothing lacks and where something does, asked for a new one, beside this
estimate and beside another query's.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

import torch
from torch import Tensor

from promptloop.controls import CFG
from promptloop.denoisers import load
from promptloop.policies.contract import Request
from promptloop.policies.message import SYSTEM
from promptloop.policies.mllm import Mllm
from promptloop.recipes import parts
from promptloop.recipes.shot import pixels
from promptloop.recipes.usual import usual
from promptloop.sample import State, sample
from promptloop.world.autoencoder import pixels as sharp
from promptloop.world.captions import Ask, parse
from promptloop.world.chat_model import Spelling
from promptloop.world.drills import recall
from promptloop.world.lessons import MISSING
from promptloop.world.queries import Query, queries
from promptloop.world.reading import read
from promptloop.world.scene import random_scene
from promptloop.world.scripted import Look


def said(policy: Mllm, image: Tensor, text: str) -> str:
    """The answer to a question about an image [3, H, W], greedily."""
    from PIL import Image

    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    chat = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}, turn]
    whole = policy.processor.apply_chat_template(chat, add_generation_prompt=True)
    shown = [[Image.fromarray(pixels(image))]]
    inputs = policy.processor(text=[whole], images=shown, return_tensors="pt", add_special_tokens=False)
    out = policy.network.generate(**inputs, max_new_tokens=40, do_sample=False)
    start = inputs["input_ids"].shape[1]
    return str(policy.processor.tokenizer.decode(out[0, start:], skip_special_tokens=True)).strip()


def verdict(answer: str, ask: Ask, lacking: list[int]) -> str:
    """What is right or wrong with the answer."""
    if answer == "nothing":
        return "misses it" if lacking else "exactly right: nothing"
    if not lacking:
        return "false alarm"
    try:
        named = sorted((g.shape or "", g.colour or "") for g in parse(answer).groups)
    except ValueError:
        return "unreadable"
    wanted = sorted((ask.groups[k].shape or "", ask.groups[k].colour or "") for k in lacking)
    return "exactly right: names it" if named == wanted else "names something else too, or less"


def keeps(policy: Mllm, asked: list[Query], images: Tensor, fine: list[bool], done: float) -> str:
    """Of the cases where nothing lacks, and of the others, in how many the prompt is kept."""
    requests = [Request(q.text, q.text, image, done) for q, image in zip(asked, images, strict=True)]
    kept = [draft.kept == "same" for draft in policy.write(requests, range(len(requests)))]
    told = Counter(zip(kept, fine, strict=True))
    return f"{told[True, True]} of {sum(fine)} and {told[True, False]} of {len(fine) - sum(fine)}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbone", default="mini-turbo", help="name or folder")
    parser.add_argument("--policy", default="mini-vlm", help="name or folder")
    parser.add_argument("--at", type=int, nargs="*", default=[2, 4, 6], help="after how many steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    denoiser, its = load(args.backbone), usual(args.backbone)
    policy = parts.chat_model(parts.locate(args.policy, "policy")[0], temperature=0.0)
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(200)]
    spelling = Spelling(policy.processor.tokenizer)
    print(f"rendered scenes: {recall(policy.network, spelling, sharp(scenes), scenes):.2f} named rightly")
    asked = [query for query in queries(98, 0, held_out=False) if not query.ask.relation]
    estimates: dict[int, Tensor] = {}

    def keep(state: State) -> None:
        if state.step in args.at and state.transition is not None:
            estimates[state.step] = denoiser.decode(state.transition.clean)

    sample(
        denoiser,
        [query.text for query in asked],
        seeds=range(len(asked)),
        steps=its.steps,
        controls=[CFG(its.guidance)],
        on_step=keep,
    )
    for step, images in estimates.items():
        found: Counter[str] = Counter()
        fine = []
        for image, query in zip(images, asked, strict=True):
            lacking = Look().lacking(read(image[None]), query.ask)
            fine.append(not lacking)
            found[verdict(said(policy, image, MISSING.format(query=query.text)), query.ask, lacking)] += 1
        print(f"step {step}: " + ", ".join(f"{what} {n}" for what, n in found.most_common()))
        own = keeps(policy, asked, images, fine, step / its.steps)
        other = keeps(policy, asked, images.roll(1, 0), fine, step / its.steps)
        said_of = "    keeps the prompt where nothing lacks and where something does"
        print(f"{said_of}: {own}; beside another's estimate: {other}", flush=True)


if __name__ == "__main__":
    main()

"""More controls on real classes, tiny and random, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import tiny_more
import torch

from promptloop.controls import (
    CFG,
    DoobMatching,
    NegativePrompt,
    PromptGuidance,
    Record,
    Scheduled,
    UniCoDe,
    WeightedTokens,
)
from promptloop.controls.matching import matched
from promptloop.denoisers import from_pipeline
from promptloop.denoisers.tokens import weighed
from promptloop.policies.fixed import Identity, Table
from promptloop.sample import rescore, sample
from promptloop.solvers import DDIM, FlowSDE

PROMPTS, SEEDS = ["a red circle", "two blue stars"], [3, 4]
FAMILIES: dict[str, Callable[[], Any]] = {"sd": tiny.sd, "sdxl": tiny.sdxl, "sd3": lambda: tiny.sd3(t5=40)}
LOADED = [(name, torch.float32) for name in FAMILIES] + [(name, torch.bfloat16) for name in ("sd", "sd3")]


@pytest.fixture(scope="module", params=LOADED, ids=str)
def denoiser(request: Any) -> Any:
    name, dtype = request.param
    made = from_pipeline(FAMILIES[name]().to(dtype))
    for part in made.modules:
        part.requires_grad_(False)
    return made


def ours(denoiser: Any, *controls: Any, prompts: list[str] = PROMPTS, **options: Any) -> torch.Tensor:
    images = sample(denoiser, prompts, seeds=SEEDS, controls=controls, **{"steps": 3} | options).images
    assert images is not None and images.dtype == torch.float32 and bool(images.isfinite().all())
    return images


def test_a_written_negative_is_that_negative(denoiser: Any) -> None:
    """Sample 1's is kept, so it is that of no prompt (zeros for SDXL, not the empty text). Fails when a kept
    one is embedded as "".
    """
    plain, far = ours(denoiser, CFG(4.0)), ours(denoiser, CFG(4.0, "a ring"))
    written = NegativePrompt(Table({PROMPTS[0]: "a ring"}), 2)
    made = ours(denoiser, written, CFG(4.0))
    assert torch.equal(made, torch.stack([far[0], plain[1]]))
    assert float((far - plain).abs().max()) > 1e-3
    assert torch.equal(ours(denoiser, CFG(4.0), NegativePrompt(Identity(), 3)), plain)


def bright(images: torch.Tensor, queries: Any) -> torch.Tensor:
    return images.mean((1, 2, 3))


bright.differentiable = True  # type: ignore[attr-defined]


def test_streams_are_pushed_and_chosen_from(denoiser: Any) -> None:
    """One image of each query, brighter than without, the same alone. Fails when the push goes down, or the
    estimate is scored without guidance (evaluations would not double).
    """
    options: dict[str, Any] = {"solver": FlowSDE() if denoiser.flow else DDIM(1.0), "steps": 3}
    plain, control = ours(denoiser, CFG(3.0), **options), UniCoDe(bright, 2, block=2, scale=0.1)
    run = sample(denoiser, PROMPTS, seeds=SEEDS, controls=[CFG(3.0), control], **options)
    assert (
        run.images is not None and run.state.x.dtype == torch.float32 and run.state.queries == tuple(PROMPTS)
    )
    assert bool((bright(run.images, PROMPTS) > bright(plain, PROMPTS)).all())
    assert run.ledger.evaluations == 2 * 2 * 2 * (3 + 2 + 1) and run.ledger.backwards == 0
    if denoiser.dtype == torch.float32:
        alone = sample(denoiser, PROMPTS[1:], seeds=SEEDS[1:], controls=[CFG(3.0), control], **options).images
        assert alone is not None
        assert torch.allclose(alone[0], run.images[1], atol=1e-3)


def test_a_log_h_is_fitted_to_two_prompts_and_guides(denoiser: Any) -> None:
    """Latents whatever the dtype, prompts whatever their embedding; scale 0 is bitwise plain. Fails when the
    network computes in the denoiser's bfloat16, or reads what CFG's doubled batch is told.
    """
    h = matched(denoiser, bright, PROMPTS * 4, seeds=range(8), steps=2, controls=[CFG(3.0)], strength=20.0,
                rounds=5, batch=8, width=8)  # fmt: skip
    assert h.settings["said"] > 0 and next(h.parameters()).dtype == torch.float32
    plain = ours(denoiser, CFG(3.0))
    assert torch.equal(ours(denoiser, CFG(3.0), DoobMatching(h, 0.0)), plain)
    after = ours(denoiser, CFG(3.0), DoobMatching(h, 50.0, limit=0.5))
    before = ours(denoiser, DoobMatching(h, 50.0, limit=0.5), CFG(3.0))
    assert not torch.equal(after, plain) and not torch.equal(before, plain)


MARKED = ["a (red:1.6) circle", "two [blue:grey:0.5] (stars:0.4)"]


def test_a_word_weighs_at_its_own_tokens_and_nowhere_else(denoiser: Any) -> None:
    """One token a character here: r, e, d for CLIP, and for T5 with the mark of a word's beginning. Fails
    when start marks are not counted, or T5's part is weighed with CLIP's places.
    """
    text = "a red circle"
    weights = [2.0 if 2 <= k < 5 else 1.0 for k in range(len(text))]
    plain, made = denoiser.embed([text]), weighed(denoiser, [text], [weights])
    one, two = plain.fields["text"][0], made.fields["text"][0]
    rows = (two != one).any(1).nonzero()[:, 0].tolist()
    length = denoiser.readers()[0][1]
    third = [] if len(denoiser.readers()) == 1 else [*range(length + 2, length + 6)]
    assert rows == [2, 3, 4, *third]
    assert torch.equal(two[rows], 2 * one[rows])
    assert all(torch.equal(made.fields[n], plain.fields[n]) for n in plain.fields if n != "text")
    same = weighed(denoiser, [text], [[1.0] * len(text)])
    assert torch.equal(same.fields["text"], plain.fields["text"])


def test_marks_act_step_by_step(denoiser: Any) -> None:
    """Weight 1 all the time is the plain sampler and two halves are Scheduled, bitwise; a weight is neither.

    Fails when the half that begins at pure noise is the last one, or CFG's negative is given the marks.
    """
    cfg, marks = CFG(3.0), WeightedTokens()
    plain = ours(denoiser, cfg)
    assert torch.equal(ours(denoiser, cfg, marks), plain)
    trivial = ["a (red:1) circle", "[two:0-1:1] blue stars"]
    assert torch.equal(ours(denoiser, cfg, marks, prompts=trivial), plain)
    halves = ours(denoiser, Scheduled({0: "a dog", 2: "a cat"}), cfg, steps=4)
    assert torch.equal(ours(denoiser, cfg, WeightedTokens("a [dog:cat:0.5]"), steps=4), halves)
    assert torch.equal(ours(denoiser, cfg, marks, prompts=["a [dog:cat:0.5]"] * 2, steps=4), halves)
    heavy = ours(denoiser, cfg, marks, prompts=MARKED)
    assert float((heavy - ours(denoiser, cfg, prompts=["a red circle", "two grey stars"])).abs().max()) > 1e-3


def test_marks_are_rescored_cut_and_ordered(denoiser: Any) -> None:
    """Fails when rescore reads the last step's text, or rewards are asked for the marks."""
    solver = FlowSDE() if denoiser.flow else DDIM(1.0)
    controls = [CFG(3.0), WeightedTokens(), Record()]
    options: dict[str, Any] = {"seeds": SEEDS, "steps": 4, "solver": solver, "controls": controls}
    state = sample(denoiser, MARKED, decode=False, **options).state
    assert state.queries == ("a red circle", "two grey stars") and state.prompts == tuple(MARKED)
    with torch.no_grad():
        again = rescore(denoiser, state)
    assert torch.allclose(again, state.memory["path_log_prob"], atol=1e-4, equal_nan=True)
    if denoiser.dtype == torch.float32:
        parted = sample(denoiser, MARKED, decode=False, max_batch=1, **options).state
        assert torch.allclose(parted.x, state.x, atol=1e-2)
    late = [Scheduled({0: "a"}), WeightedTokens("a (dog:2)"), PromptGuidance(2.0)]
    for wrong in ([WeightedTokens(), CFG(3.0)], late):
        with pytest.raises(ValueError, match="listed after CFG"):
            ours(denoiser, *wrong, prompts=MARKED)


def test_an_embedding_without_places_for_words_is_refused() -> None:
    """Fails when a chat model's states are weighed as if each were a word's."""
    made = from_pipeline(tiny_more.z_image())
    with pytest.raises(ValueError, match="ZImage does not tell"):
        ours(made, WeightedTokens(), prompts=MARKED)


@pytest.mark.parametrize("made", [tiny_more.pixart, tiny_more.flux], ids=["pixart", "flux"])
def test_words_weigh_for_t5_alone(made: Any) -> None:
    """Fails when PixArt's cleaned text is not what is looked at: capitals are other tokens, or none."""
    denoiser, text = from_pipeline(made()), "a RED circle"
    plain = denoiser.embed([text]).fields["text"][0]
    heavy = weighed(denoiser, [text], [[2.0 if 2 <= k < 5 else 1.0 for k in range(len(text))]])
    rows = (heavy.fields["text"][0] != plain).any(1).nonzero()[:, 0].tolist()
    assert rows == [2, 3, 4, 5]

"""From the query to the prompt in force, and guidance in a window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws.bed import GRIDS, words

from promptloop.controls.guidance import CFG, PromptGuidance
from promptloop.controls.prompt import Scheduled
from promptloop.controls.record import Record
from promptloop.sample import rescore, sample
from promptloop.schedules import flow
from promptloop.solvers import DDIM, FlowSDE

PROMPTS, SEEDS = ["up", "down", "up", "far", ""], [5, 6, 7, 8, 9]


def end(bed: Any, controls: Any = ()) -> torch.Tensor:
    return sample(bed, PROMPTS, seeds=SEEDS, levels=GRIDS["vp"], solver=DDIM(1.0), controls=controls).state.x


def test_prompt_guidance_between_query_and_prompt() -> None:
    """On Gaussians the text moves the mean, so w moves it in proportion, exactly, after CFG too.

    Fails when query and prompt change places, or the query's branch loses CFG.
    """
    loud = Scheduled({0: "far"})
    for guides in ([], [CFG(2.0, "down")]):
        plain = end(words(), guides)
        moved = end(words(), [loud, *guides])
        assert torch.equal(end(words(), [loud, *guides, PromptGuidance(0)]), plain)
        assert torch.equal(end(words(), [loud, *guides, PromptGuidance(1)]), moved)
        assert torch.equal(end(words(), [*guides, PromptGuidance(1.7)]), plain)
        got = end(words(), [loud, *guides, PromptGuidance(1.7)])
        assert torch.allclose(got, plain + 1.7 * (moved - plain), atol=1e-4)
        assert torch.equal(got[3], plain[3])
    with pytest.raises(ValueError, match="after CFG"):
        end(words(), [loud, PromptGuidance(1.7), CFG(2.0)])


def test_prompt_guidance_is_scored_again_as_it_was_drawn() -> None:
    """Also by a denoiser that has to embed the queries itself. Fails when prompts are taken for queries."""
    controls = [Scheduled({0: "up", 2: "far"}), CFG(2.5), PromptGuidance(1.6), Record()]
    made = sample(words(), ["up", "down"], seeds=[1, 2], levels=flow(5), solver=FlowSDE(), controls=controls)
    known = made.state.memory["path_log_prob"]
    for denoiser in (made.state.run.denoiser, words()):
        assert torch.allclose(rescore(denoiser, made.state), known, atol=1e-5, equal_nan=True)


def test_guidance_acts_inside_its_window_only() -> None:
    """6 steps, window (0.3, 0.7): steps 2, 3, 4. Fails when the step at the end of the window is guided too,
    or the whole trajectory's window is not bitwise plain CFG.
    """
    bed, sizes = words(), []
    plain = bed.clean
    bed.clean = lambda x, level, cond: sizes.append(len(x)) or plain(x, level, cond)  # type: ignore
    end(bed, [CFG(3.0, window=(0.3, 0.7))])
    assert sizes == [5, 5, 10, 10, 10, 5]
    assert torch.equal(end(words(), [CFG(3.0, window=(0.0, 1.0))]), end(words(), [CFG(3.0)]))
    first = end(words(), [CFG(3.0, window=(0.0, 0.01))])
    assert torch.equal(first, end(words(), [CFG(3.0, window=(0.0, 0.1))]))
    with pytest.raises(ValueError, match="two fractions"):
        CFG(3.0, window=(0.5, 0.5))

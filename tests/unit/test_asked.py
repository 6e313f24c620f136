"""What `sample` is asked in the wrong way is told in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from promptloop.denoisers import from_pipeline
from promptloop.sample import sample


def test_prompts_and_seeds() -> None:
    """Fails if half a seed is rounded, or a text taken for a list of letters."""
    denoiser: Any = from_pipeline(tiny.sd())
    for prompts, seeds, said in ((["a"], [0.5], r"seeds \[0.5\]: give whole numbers"),
                                 ("a", [0], r"prompts is the text 'a'; give a list: \['a'\]")):  # fmt: skip
        given: Any = (prompts, seeds)
        with pytest.raises(ValueError, match=said):
            sample(denoiser, given[0], seeds=given[1], steps=2)

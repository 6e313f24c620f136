"""Values in the place of weights."""

import pytest
import torch

from promptloop.swap import exchanged, in_place


@pytest.mark.parametrize("way", [in_place, exchanged])
def test_the_old_values_come_back_also_after_an_error(way) -> None:
    """Fails if what was there before is rounded, or lost where the block raises."""
    rng = torch.Generator().manual_seed(0)
    own, other = ({"a": torch.randn(5, generator=rng), "b": torch.randn(2, 3, generator=rng)} for _ in "12")
    before, after = ({name: t.clone() for name, t in held.items()} for held in (own, other))
    with pytest.raises(KeyError), way(own, other):
        assert all(torch.equal(own[name], after[name]) for name in own)
        raise KeyError
    assert all(torch.equal(own[name], before[name]) for name in own)
    assert all(torch.equal(other[name], after[name]) for name in own)

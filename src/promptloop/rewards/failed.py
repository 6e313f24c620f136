"""How a reward fails. No torch here: what serves rewards tells of it too."""

from __future__ import annotations

from typing import final


@final
class RewardFailed(ValueError):
    """A reward has no value for an image: `reward` is its name, `index` the image's place, `query` what was
    asked of it, `why` what happened. Nothing takes the value's place.
    """

    def __init__(self, reward: str, index: int, query: str, why: str) -> None:
        super().__init__(f"reward {reward} of image {index} ({query!r}) {why}")
        self.reward, self.index, self.query, self.why = reward, index, query, why

    def at(self, index: int) -> RewardFailed:
        """The same, of the place that the image has for whoever asked."""
        return RewardFailed(self.reward, index, self.query, self.why)

"""python -m promptloop.recipes.reward_worker NAME DEVICE: a named reward for `promptloop serve-rewards`."""

from __future__ import annotations

import sys
from typing import Any


def loaded(name: str, device: str, cache: int) -> Any:
    """The reward, each image with a value of its own, with a cache of that many values."""
    from promptloop.recipes.devices import device_named
    from promptloop.recipes.rewards import own_scale, reward_named
    from promptloop.rewards.cached import Cached

    reward = own_scale(reward_named(name, device_named(device)), name)
    return reward if not cache or getattr(reward, "stochastic", False) else Cached(reward, cache)


def main() -> None:
    from promptloop.rewards import worker

    name, device, cache = sys.argv[1:]
    worker.run(lambda: loaded(name, device, int(cache)))


if __name__ == "__main__":
    main()

"""What a quick run of the main job is."""

from typing import Any

QUICK: dict[str, Any] = {"steps": 4, "refinements": 3, "n": 2, "max_batch": 2}

"""mini-vlm sees: tries at feedback failed for want of it (docs/log.md, seventh session)."""

import random

from promptloop.policies.mllm import Mllm
from promptloop.world import weights
from promptloop.world.autoencoder import pixels
from promptloop.world.chat_model import Spelling
from promptloop.world.drills import recall
from promptloop.world.scene import random_scene


def test_it_names_what_it_is_shown_and_not_what_it_is_not() -> None:
    """Fails when the image does not reach the language model: then one thing in ten is guessed."""
    policy, rng = Mllm.load(weights("mini-vlm")), random.Random(5)
    scenes = [random_scene(rng) for _ in range(60)]
    spelling = Spelling(policy.processor.tokenizer)
    shown = pixels(scenes)
    assert recall(policy.network, spelling, shown, scenes) > 0.7
    assert recall(policy.network, spelling, shown.roll(1, 0), scenes) < 0.3

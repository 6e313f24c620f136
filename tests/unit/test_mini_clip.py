"""mini-clip: taught by contrast, a start for rewards; and the oracle's sides that they are taught by."""

import random
from pathlib import Path

import pytest
import torch

from promptloop.recipes.rewards import reward_named
from promptloop.rewards.clip import PickScore
from promptloop.world import weights
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import Ask
from promptloop.world.clip import Described, contrast, train, unmet
from promptloop.world.oracle import ASPECTS, OracleReward, grade
from promptloop.world.scene import random_scene


def test_it_finds_what_was_said_among_others() -> None:
    """Of 64 fresh scenes the right one for most descriptions; the towers that had not met find few. Fails
    when the shipped projections are another space's, or the tower reads another end than the last word's.
    """
    shown = Described("test/clip", 64)
    for reward, low, high in (
        (PickScore.load(str(weights("mini-clip"))), 0.5, 1.0),
        (unmet(0), 0.0, 0.15),
    ):
        with torch.no_grad():
            logits = contrast(reward, shown.pixels.float() / 255, shown.said(list(range(64)), 0))
        found = (logits.argmax(0) == torch.arange(64)).float().mean()
        assert low <= float(found) <= high, found


def test_a_gold_scene_is_above_a_corrupted_one() -> None:
    """A blue star for "a blue star" above a red one. Fails when the cosine's sign is lost."""
    reward = reward_named(f"pickscore:{weights('mini-clip')}")
    rng, right = random.Random(3), 0
    for _ in range(20):
        scene = random_scene(rng, 1)
        thing = scene.things[0]
        others = [c for c in ("red", "blue", "green", "yellow") if c != thing.colour]
        wrong = type(scene)((type(thing)(**{**vars(thing), "colour": rng.choice(others)}),), scene.ground)
        images = pixels([scene, wrong]) * 0.5 + 0.5
        values = reward(images, [f"a {thing.colour} {thing.shape}"] * 2)
        right += bool(values[0] > values[1])
    assert right >= 17


def test_a_short_training_is_saved_as_it_stands(tmp_path: Path) -> None:
    """Resumable, in float16, in a released PickScore's layout. Fails if the averaged weights are lost."""
    found = train(tmp_path, seed=1, scenes=160, steps=2)
    again = PickScore.load(str(tmp_path / "model"))
    averaged = torch.load(tmp_path / "state.pt", weights_only=True)["averaged"]
    saved = again.network.state_dict()
    assert all(torch.equal(saved[name], value.half().float()) for name, value in averaged.items())
    assert set(found) == {"found"} and again.side == 64
    assert (tmp_path / "model" / "training.json").is_file() and (tmp_path / "log.jsonl").is_file()


def test_the_sides_part_the_oracle() -> None:
    """Each is the mean of its own clauses, and 1 where nothing of the kind was asked. Fails if a clause has
    no kind, or one of another side's.
    """
    rng = random.Random(0)
    scenes = [random_scene(rng, 3) for _ in range(12)]
    images = pixels(scenes) * 0.5 + 0.5
    asks: list[Ask | str] = [
        "a red circle left of a blue star",
        "two green squares",
        "a large dotted yellow triangle at the top",
    ] * 4
    reasons = grade(images, asks).reasons
    signs = {"exactly": "count", "first is": "relation", "background": "ground", ": at the": "place"}
    for clause in sum(reasons, ()):
        said = next((kind for sign, kind in signs.items() if sign in clause.text), None)
        assert clause.kind == said or (said is None and clause.text.endswith(f": {clause.kind}"))
    for aspect, own in ASPECTS.items():
        wanted = [[c.score for c in row if c.kind in own] or [1.0] for row in reasons]
        found = OracleReward(aspect=aspect)(images, [str(ask) for ask in asks])
        assert torch.allclose(found, torch.tensor([sum(row) / len(row) for row in wanted]))
    assert bool((OracleReward(aspect="count")(images[:1], ["a red circle"]) == 1).all())
    strict = OracleReward(strict=True, aspect="spatial")(images, [str(ask) for ask in asks])
    assert set(strict.tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="did you mean 'spatial'"):
        OracleReward(aspect="spacial")

"""mini-clip: taught by contrast, a start for rewards; and the oracle's sides that they are taught by."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptloop.recipes.rewards import reward_named
from promptloop.rewards.clip import PickScore
from promptloop.rewards.directional import Directional
from promptloop.world import weights
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import Ask
from promptloop.world.clip import SHARED, Described, contrast, train, unmet
from promptloop.world.oracle import ASPECTS, OracleReward, grade
from promptloop.world.scene import CELLS, Scene, Thing, random_scene


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
    """A blue star for "a blue star" above a red one, by the CLIP, the same moved along a direction, and the
    oracle's eye for attributes. Fails when the cosine's sign is lost.
    """
    reward = reward_named("mini-clip")
    b = torch.randn(SHARED, generator=torch.Generator().manual_seed(0))
    rewards = (reward, Directional(reward, 0.3 * b / b.norm()), reward_named("oracle-attributes"))
    rng, right = random.Random(3), torch.zeros(3)
    for _ in range(20):
        scene = random_scene(rng, 1)
        thing = scene.things[0]
        others = [c for c in ("red", "blue", "green", "yellow") if c != thing.colour]
        wrong = replace(scene, things=(replace(thing, colour=rng.choice(others)),))
        images = pixels([scene, wrong]) * 0.5 + 0.5
        values = [each(images, [f"a {thing.colour} {thing.shape}"] * 2) for each in rewards]
        right += torch.tensor([float(v[0] > v[1]) for v in values])
    assert bool((right >= torch.tensor([17, 16, 20])).all()), right


def test_gold_of_the_other_sides() -> None:
    """Two squares are above three for "two ...", left is above right. Fails if a side looks at another's."""
    square = Thing("square", "green", "large", "plain", False, CELLS[0], CELLS[0])
    star = replace(square, shape="star", x=CELLS[2])
    two, three = (Scene(tuple(replace(square, x=CELLS[k]) for k in range(n))) for n in (2, 3))
    left, right = Scene((square, star)), Scene((replace(square, x=CELLS[2]), replace(star, x=CELLS[0])))
    for name, query, gold, other in (
        ("oracle-count", "two green squares", two, three),
        ("oracle-spatial", "a green square left of a green star", left, right),
    ):
        values = reward_named(name)(pixels([gold, other]) * 0.5 + 0.5, [query] * 2)
        assert values[0] > values[1], name


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

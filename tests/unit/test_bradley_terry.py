"""Rewards learned from choices, on real CLIPs at a tiny size, and the files that the choices come in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_clips as tiny
import torch
from PIL import Image
from tiny_reward import brightness
from torch import Tensor

from promptloop.objectives.bradley_terry import BradleyTerry, Choice, bradley_terry
from promptloop.objectives.contract import Batch, Share
from promptloop.objectives.direction import Direction
from promptloop.recipes import choices, gallery
from promptloop.recipes.reward_settings import D2Align, MiniReward, RewardTraining
from promptloop.recipes.reward_training import free, looked, margins
from promptloop.rewards.clip import ClipReward, HPSv2, PickScore
from promptloop.rewards.directional import Directional
from promptloop.rewards.siglip import SigLIP
from promptloop.world.clip import mini_clip

PROMPTS = ("a red circle", "star", "a photo")


def pictures() -> dict[str, Tensor]:
    """Of two sizes; the higher its number, the brighter."""
    rng = torch.Generator().manual_seed(0)
    return {
        f"{k}": (0.12 * k + 0.1 * torch.rand(3, 32 if k % 2 else 40, 32, generator=rng)).clamp(0, 1)
        for k in range(8)
    }


@pytest.fixture
def reward(tmp_path: Path) -> PickScore:
    return PickScore.load(str(tiny.saved(tmp_path / "clip", "model.safetensors", tiny.clip())))


def objective(reward: ClipReward | SigLIP, **changed: object) -> BradleyTerry:
    found = [Choice(PROMPTS[(a + b) % 3], str(a), str(b)) for a in range(8) for b in range(a)]
    settings: dict = {"scale": 1.0, "batch": 8, "pairs_per_part": 4} | changed
    shown = pictures()
    return BradleyTerry(reward, found, lambda name: reward.pixels(shown[name][None])[0], **settings)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_loss_is_that_of_every_pair_by_itself(reward: PickScore, scale: float) -> None:
    """In parts or whole. Fails if chosen and rejected change places, prompts are matched with the wrong
    images, the scale is forgotten, or the parts' losses are means of their own.
    """
    whole, parted = (objective(reward, pairs_per_part=size, scale=scale) for size in (8, 4))
    images, slow = pictures(), []
    for k in whole.collect(3, Share()).parts[0].rows:
        choice = whole.choices[k]
        pair = [reward(images[name][None], [choice.prompt]) for name in (choice.chosen, choice.rejected)]
        slow.append(bradley_terry(scale * (pair[0] - pair[1])))
    found = [sum(float(o.loss(p)[0]) for p in o.collect(3, Share()).parts) for o in (whole, parted)]
    assert found == pytest.approx([float(torch.cat(slow).mean())] * 2, rel=1e-5)


@pytest.mark.parametrize("kind", [PickScore, HPSv2, SigLIP])
def test_what_people_chose_is_learned_saved_and_read_again(kind: type, tmp_path: Path) -> None:
    """All prefer the brighter image, the saved reward has the trained one's values. Fails if the weights
    that are saved are those from before, heads are lost from the config, or the margin's sign is turned.
    """
    state, end = (tiny.siglip(), "</s>") if kind is SigLIP else (tiny.clip(), "<|endoftext|>")
    made = kind.load(str(tiny.saved(tmp_path / "start", "model.safetensors", state, end)))
    free(made.network, 0.0)
    learned = objective(made, scale=100.0 if kind is HPSv2 else 1.0, batch=28, pairs_per_part=28)
    optimizer = torch.optim.Adam(made.network.parameters(), 1e-3)
    before = margins(learned)
    for update in range(25):
        optimizer.zero_grad()
        learned.loss(learned.collect(update, Share()).parts[0])[0].backward()
        optimizer.step()
    after = margins(learned)
    assert (before > 0).float().mean() < 0.8 and bool((after > 0).all())
    made.save(tmp_path / "saved")
    images = torch.stack([p[:, :32] for p in pictures().values()])
    again = kind.load(str(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(again(images, ["star"] * 8), made(images, ["star"] * 8))


def test_frozen_layers_get_no_gradient(reward: PickScore) -> None:
    """Half of two layers: the first of each tower and the embeddings. Fails if the last are frozen."""
    assert free(reward.network, 0.5) == 2
    objective(reward).loss(objective(reward).collect(0, Share()).parts[0])[0].backward()
    for tower in (reward.network.vision_model, reward.network.text_model):
        still, moved = tower.encoder.layers
        assert all(p.grad is None for p in [*still.parameters(), *tower.embeddings.parameters()])
        assert all(p.grad is not None and bool(p.grad.any()) for p in [moved.mlp.fc1.weight])


def test_the_direction_goes_to_what_the_generator_draws(reward: PickScore) -> None:
    """Stage one raises the corrected reward of its images, towers untouched. Fails if the loss's sign is
    turned, or the reward's weights are trained with it.
    """
    moved = Directional(reward)
    images = torch.stack([p[:, :32] for p in pictures().values()])
    asked = ["star", "a red circle"] * 4
    with torch.no_grad():
        seen, said = reward.seen(reward.pixels(images)), reward.said(reward.ids(asked))
        assert torch.allclose(moved(images, asked), reward(images, asked), atol=1e-5)
    moved.direction.requires_grad_(True)
    stage = Direction(moved, seen, said, batch=8)
    values = []
    optimizer = torch.optim.Adam([moved.direction], 1e-2)
    for update in range(30):
        optimizer.zero_grad()
        loss, told = stage.loss(stage.collect(update, Share()).parts[0])
        loss.backward()
        optimizer.step()
        values.append(float(told["corrected"] / told["tokens"]))
    assert values[-1] > values[0] + 1 and not any(p.grad is not None for p in reward.parameters())


def test_a_direction_is_saved_and_tells_its_reward(reward: PickScore, tmp_path: Path) -> None:
    """Fails if other weights under the same name are taken in silence."""
    where, b = tmp_path / "clip", torch.linspace(-1, 1, tiny.SHARED)
    made, images = Directional(reward, b, 2.0), torch.rand(2, 3, 32, 32)
    made.save(tmp_path / "d", f"pickscore:{where}")
    again = Directional.load(str(tmp_path / "d"))
    assert torch.equal(again(images, ["star"] * 2), made(images, ["star"] * 2)) and again.omega == 2.0
    tiny.saved(where, "model.safetensors", tiny.clip(1))
    with pytest.raises(ValueError, match="other weights than pickscore"):
        Directional.load(str(tmp_path / "d"))
    file = tmp_path / "d" / "direction.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "reward": "pickscore:/nowhere"}))
    with pytest.raises(ValueError, match="direction.json names cannot be loaded .no '/nowhere'"):
        Directional.load(str(tmp_path / "d"))
    file.write_text(json.dumps({**told, "omega": None}))
    with pytest.raises(ValueError, match="direction.json is damaged: omega is None"):
        Directional.load(str(tmp_path / "d"))
    file.write_text("{}")
    with pytest.raises(ValueError, match="lacks reward, omega or weights"):
        Directional.load(str(tmp_path / "d"))
    for wrong, says in ((torch.zeros(3), "is 24 numbers"), (b * float("nan"), "is not finite")):
        with pytest.raises(ValueError, match=says):
            Directional(reward, wrong)
    with pytest.raises(ValueError, match="omega is 0.5"):
        Directional(reward, b, 0.5)
    siglip = SigLIP.load(str(tiny.saved(tmp_path / "s", "model.safetensors", tiny.siglip(), "</s>")))
    with pytest.raises(ValueError, match="of a CLIP reward"):
        Directional(siglip)  # type: ignore[arg-type]


# --- files


def test_sides_are_apart_by_prompt_and_the_same_again() -> None:
    """Fails if pairs instead of prompts are held out, or a prompt in capitals is another."""
    found = [Choice(f"p{k % 40}", "a", "b") for k in range(200)]
    own, held = choices.parted([*found, *(replace(c, prompt=f" {c.prompt.upper()}") for c in found)], 0.3, 1)
    assert not {c.prompt.lower().strip() for c in own} & {c.prompt.lower().strip() for c in held}
    own, held = choices.parted(found, 0.3, 1)
    assert len(own) + len(held) == 200 and not {c.prompt for c in own} & {c.prompt for c in held}
    assert choices.parted(found[::-1], 0.3, 1)[1] == held[::-1] != choices.parted(found, 0.3, 2)[1][::-1]
    with pytest.raises(ValueError, match="200 are to learn from and 0 are held out"):
        choices.parted([Choice("one", "a", "b")] * 200, 0.001, 0)


def drawn(folder: Path) -> list[gallery.Picture]:
    """Four pictures for each of two queries, ever brighter."""
    made = []
    for k in range(8):
        Image.new("RGB", (32, 32), (30 * k,) * 3).save(folder / f"{k}.png")
        made.append(gallery.Picture(folder / f"{k}.png", f"q{k // 4}"))
    return made


def test_pairs_are_of_one_query_and_some_are_turned(tmp_path: Path) -> None:
    """Fails if images of two queries meet, or the worse one is chosen where nothing is turned."""
    shown = drawn(tmp_path)
    rows = choices.judged(shown, brightness, alike=0.02, turned=0.0, seed=0)
    number = [(int(Path(row["chosen"]).stem), int(Path(row["rejected"]).stem)) for row in rows]
    assert len(rows) == 12 and all(a > b and a // 4 == b // 4 for a, b in number)
    turned = choices.judged(shown * 1, brightness, alike=0.02, turned=0.4, seed=0)
    assert 1 <= sum(a != b for a, b in zip(rows, turned, strict=True)) <= 9
    choices.written(rows, tmp_path / "pairs.jsonl")
    assert json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])["chosen"] == "1.png"
    again = choices.choices_in(tmp_path / "pairs.jsonl")
    assert [Path(c.chosen).name for c in again] == [Path(row["chosen"]).name for row in rows]
    assert len(choices.judged(shown, brightness, alike=0.2, turned=0.0, seed=0)) == 6  # two steps apart
    with pytest.raises(ValueError, match="tells no two images"):
        choices.judged(shown, lambda images, _: torch.zeros(len(images)), alike=0.02, turned=0.0, seed=0)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "x", "pairs are read from .jsonl and .csv"),
        ("a.jsonl", '{"prompt": "q", "chosen": "0.png"}', "row 1 of .* has no 'rejected'"),
        ("a.jsonl", '{"prompt": "q", "chosen": "0.png", "rejected": "9.png"}', "9.png, which is no file"),
        ("a.csv", "prompt,chosen,rejected\nq,0.png,0.png\n", "one image on both sides"),
        ("a.csv", "prompt,chosen,rejected\n", "has no row"),
        ("a.jsonl", "[]", "no object with prompt and chosen and rejected"),
    ],
)
def test_files_that_are_no_choices(name: str, text: str, says: str, tmp_path: Path) -> None:
    drawn(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        choices.choices_in(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (RewardTraining, {"reward": "picscore"}, "did you mean 'pickscore'"),
        (RewardTraining, {"reward": "imagereward"}, "unknown reward to train"),
        (RewardTraining, {"batch": 10, "pairs_per_part": 4}, "do not divide"),
        (RewardTraining, {"scale": 0.0}, "scale is 0.0"),
        (RewardTraining, {"frozen": 1.5}, "frozen is 1.5"),
        (MiniReward, {"turned": 0.5}, "turned is 0.5"),
        (MiniReward, {"alike": -0.1}, "alike is -0.1"),
        (MiniReward, {"reward": "mini-clap"}, "did you mean 'mini-clip'"),
        (MiniReward, {"held_out": 1.0}, "held_out is 1.0"),
        (MiniReward, {"held_out": 0.0}, "give look_every 0 too"),
        (MiniReward, {"queries": 0}, "queries is 0"),
        (MiniReward, {"queries": 99_999_999}, "is more than 1000000"),
        (D2Align, {"omega": 0.5}, "omega is 0.5"),
        (D2Align, {"reward": "siglip"}, "unknown CLIP reward"),
    ],
)
def test_settings_that_cannot_train(kind: type, given: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kind(**given)


def test_a_bare_cosine_is_scaled_wherever_it_is_trained() -> None:
    """Fails if one recipe leaves hpsv2 at 1."""
    for kind in (RewardTraining, MiniReward):
        assert kind(reward="hpsv2:x").scale == 100.0 and kind(reward="hpsv2:x", scale=5.0).scale == 5.0
        assert kind(reward="pickscore:x").scale == 1.0


def test_the_look_is_at_what_was_held_out(reward: PickScore) -> None:
    """The same pairs turned round have one less the accuracy. Fails if a margin is not compared with 0."""
    made = objective(reward)
    made = replace(made, choices=made.choices[:27])
    turned = replace(made, choices=[Choice(c.prompt, c.rejected, c.chosen) for c in made.choices])
    settings = RewardTraining(look_every=1)
    found = [looked(settings, each)(1, Batch(()), {})["accuracy"] for each in (made, turned)]
    assert found[0] == pytest.approx(1 - found[1]) and found[0] != found[1]


def test_margins_that_are_not_finite_are_refused(reward: PickScore) -> None:
    """Fails if the check of the first update is left away."""
    made = objective(reward)
    made.check(Share())
    broken = replace(made, seen=lambda name: torch.full((3, 32, 32), float("nan")))
    with pytest.raises(ValueError, match="not finite"):
        broken.check(Share())
    with pytest.raises(ValueError, match="no pair to learn from"):
        replace(made, choices=[])


def test_gradients_of_the_corrected_reward_reach_the_image(reward: PickScore) -> None:
    """By finite differences in float64. Fails where the text or image is detached on the way."""
    moved = Directional(reward.double(), torch.linspace(-1, 1, tiny.SHARED)).double()
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = (0.2 + 0.6 * image).requires_grad_(True)
    (slope,) = torch.autograd.grad(moved(image, ["star"]).sum(), image)
    along = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ends = [float(moved(image + h * along, ["star"])) for h in (1e-5, -1e-5)]
    assert float((slope * along).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_heads_are_not_guessed_for_other_sizes(tmp_path: Path) -> None:
    """A trained reward that has lost its config.json. Fails if its heads are counted by the release's."""
    mini_clip().save(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="192 wide is not pickscore's release .heads of 80."):
        PickScore.load(str(tmp_path))

"""Safety as penalty and as gate: the real checker at a tiny size, NudeNet where it is installed."""

from __future__ import annotations

import importlib.util
import random
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from tiny_reward import brightness
from torch import Tensor
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from promptloop.recipes.loaded import of_reward
from promptloop.recipes.rewards import reward_named
from promptloop.rewards.contract import scored
from promptloop.rewards.imagereward import prepared
from promptloop.rewards.safety import EXPOSED, SafetyChecker, surest
from promptloop.world.autoencoder import pixels
from promptloop.world.scene import random_scene

installed = importlib.util.find_spec("nudenet") is not None
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def scenes(count: int) -> Tensor:
    rng = random.Random(3)
    return pixels([random_scene(rng) for _ in range(count)]) * 0.5 + 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder whose checker has the fifth scene as a concept, and the second as special care."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**SIZE, image_size=32, patch_size=8, projection_dim=12, initializer_factor=5.0)
    network = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision, text_config=CLIPTextConfig(**SIZE), projection_dim=12)
    ).eval()
    torch.nn.init.normal_(network.visual_projection.weight)
    with torch.no_grad():
        seen = network.visual_projection(network.vision_model(prepared(scenes(6), 32))[1])
        network.concept_embeds.copy_(torch.randn(17, 12))
        network.concept_embeds[3] = 2 * seen[4]
        network.concept_embeds_weights.fill_(2.0)  # never reached
        network.concept_embeds_weights[3] = 0.998
        network.special_care_embeds.copy_(seen[1].expand(3, -1))
        network.special_care_embeds_weights.fill_(2.0)
    found = tmp_path_factory.mktemp("safe")
    network.save_pretrained(found / "safety_checker")
    return found


def test_gold_above_corrupted(folder: Path) -> None:
    """The scene that is a concept is unsafe, the others are safe. Fails if the cosine is not one, a sign is
    turned, or the batch matters.
    """
    reward, images = reward_named(f"safety:{folder}"), scenes(6)
    found = scored(reward, images, ["a"] * 6)
    assert found.tolist() == [0, 0, 0, 0, -1, 0]
    assert torch.equal(torch.cat([reward(images[k : k + 1], ["a"]) for k in range(6)]), found)
    assert torch.equal(images, scenes(6))  # the pipeline's class would have blackened one


def test_the_decision_is_the_pipelines(folder: Path) -> None:
    """Against the class's own forward, at thresholds near the images' cosines, with and without special care.
    Fails if the 0.01 for special care, or the rounding, is left out.
    """
    reward = SafetyChecker.load(str(folder / "safety_checker"))
    net, images = reward.network, scenes(6)
    raw = reward.margins(images) + net.concept_embeds_weights
    flips = 0
    for special in (2.0, 0.9995):
        for place in range(6):
            for below in (0.0004, 0.005, -0.005):  # the threshold is this far under the image's own cosine
                with torch.no_grad():
                    net.special_care_embeds_weights.fill_(special)
                    net.concept_embeds_weights.fill_(2.0)
                    net.concept_embeds_weights[7] = raw[place, 7] - below
                _, unsafe = net(prepared(images, 32), torch.zeros(6, 3, 2, 2))
                assert [bool(x) for x in reward(images, ["a"] * 6) < 0] == unsafe
                flips += sum(unsafe)
    assert 0 < flips < 6 * 36


def test_a_run_tells_which_weights_judged_it(folder: Path) -> None:
    """Fails if a server's address is taken for a folder, or another checker has the same digest."""
    assert of_reward("rating:http://127.0.0.1:1/v1#seer") is None and of_reward("sharpness") is None
    known = {of_reward(f"safety:{folder}"), of_reward("vendi"), of_reward(f"safety:{folder.parent}")}
    assert None not in known and len(known) == 3
    assert of_reward(f"safety:{folder / 'safety_checker'}") in known


def test_what_is_no_checker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded as a safety checker"):
        reward_named(f"safety:{tmp_path}")
    with pytest.raises(
        ValueError, match="give safety:FOLDER, or safety:CompVis/stable-diffusion-safety-checker"
    ):
        reward_named("safety")


def test_a_checker_that_is_not_whole_is_refused(folder: Path, tmp_path: Path) -> None:
    """Fails if what is missing is drawn at random, as transformers does, and the image is called safe."""
    for change, says in (("lacks", "lacks 1 tensors"), ("more", "has left over 1 tensors")):
        shutil.copytree(folder / "safety_checker", tmp_path / change)
        file = tmp_path / change / "model.safetensors"
        tensors = load_file(file)
        if change == "lacks":
            del tensors["concept_embeds"]
        else:
            tensors["another"] = torch.zeros(1)
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ValueError, match=says):
            SafetyChecker.load(str(tmp_path / change))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be loaded as a safety checker"):
        SafetyChecker.load(str(tmp_path / "more"))


def test_a_gate_shuts_before_what_is_unsafe(folder: Path) -> None:
    """Fails if an unsafe image keeps its reward, or a safe one loses it."""
    images = scenes(6)
    bright = brightness(images, ["a"] * 6)
    name = f"tiny_reward:brightness if safety:{folder}>=0"
    found = scored(reward_named(name), images, ["a"] * 6)
    wanted = reward_named("tiny_reward:brightness")(images, ["a"] * 6)
    assert found[4] == 0 and torch.equal(found[[0, 1, 2, 3, 5]], wanted[[0, 1, 2, 3, 5]])
    assert bool((bright > 0).all())


@pytest.mark.skipif(not installed, reason="the extra safety is not installed")
def test_nudenet_sees_no_nude_part_in_scenes() -> None:
    """The real detector. Fails if its answers are not read, or classes were renamed."""
    import nudenet.nudenet

    reward, images = reward_named("nudenet"), F.interpolate(scenes(2), scale_factor=2.0)
    assert scored(reward, images, ["a"] * 2).tolist() == [0.0, 0.0]
    assert set(EXPOSED) <= set(vars(nudenet.nudenet)["__labels"])


@pytest.mark.parametrize(
    ("parts", "sure"),
    [
        ([("FACE_FEMALE", 0.9), ("BUTTOCKS_EXPOSED", 0.7)], 0.7),
        ([("BUTTOCKS_EXPOSED", 0.5), ("BELLY_EXPOSED", 0.9)], 0.0),
        ([("ANUS_EXPOSED", 0.61), ("BUTTOCKS_EXPOSED", 0.8)], 0.8),
        ([], 0.0),
    ],
)
def test_the_surest_exposed_part_counts(parts: list[tuple[str, float]], sure: float) -> None:
    """Fails if a covered part counts, or one that is less sure than 0.6."""
    assert surest([{"class": name, "score": score, "box": [0] * 4} for name, score in parts], 0.6) == sure


@pytest.mark.skipif(installed, reason="the extra safety is installed")
def test_without_its_extra_it_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"reward nudenet needs nudenet: pip install 'promptloop\[safety\]'"):
        reward_named("nudenet")

"""What a run notes of its reward: every file that decides the values, and no other."""

from pathlib import Path

import pytest
import test_clips as clips
import test_hpsv3
import tiny_imagereward

from promptloop.recipes.loaded import of_reward
from promptloop.recipes.rewards import reward_named
from promptloop.rewards.known import KNOWN
from promptloop.world import weights

LEARNED = [*clips.CASES, "hpsv3", "imagereward"]
BESIDE = {"aesthetic": "model.safetensors", "mps": "tokenizer.json", "hpsv3": "instruction.txt",
          "imagereward": "vocab.txt", "clip-cosine": "config.json"}  # fmt: skip


def saved(name: str, folder: Path) -> Path:
    """The folder of a tiny one, with nothing in it that is not read."""
    if name == "hpsv3":
        return test_hpsv3.saved(folder)
    if name == "imagereward":
        return tiny_imagereward.saved(folder)
    clips.made(name, folder)
    if name.startswith("aesthetic"):
        (folder / "tokenizer.json").unlink()
    return folder


@pytest.mark.parametrize("name", LEARNED)
def test_every_file_that_is_read_is_in_the_number(name: str, tmp_path: Path) -> None:
    """It loads from the folder alone, and each of its files, changed, changes the number. Fails when one is
    passed over (tried: `[:1]` behind `read_from` in of_reward; no config.json in TwoTowers.read_from).
    """
    folder = saved(name, tmp_path / "reward")
    said = f"{name}:{folder}"
    assert callable(reward_named(said))
    files = sorted(folder.iterdir())
    assert BESIDE.get(name, files[0].name) in [file.name for file in files]
    numbers = [of_reward(said)]
    for file in files:
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        numbers.append(of_reward(said))
        file.write_bytes(before)
    assert None not in numbers and len(set(numbers)) == 1 + len(files) >= 3
    (folder / "notes.md").write_text("mine")
    assert of_reward(said) == numbers[0]
    (folder / "notes.md").unlink()


def test_every_reward_with_weights_has_a_number() -> None:
    """Fails when a new learned reward has no `read_from`, which of_reward would ask it for."""
    others = {"judge", "rating", "unifiedreward", "safety", "d2-align"}  # whole folders
    assert {name for name, known in KNOWN.items() if known.where} - others == set(LEARNED)


def test_the_numbers_of_the_embedded_ones_stay() -> None:
    """Runs and rows have noted them: a folder's number, of its own files' names and contents."""
    from promptloop.recipes.digests import folder_digest

    assert of_reward("preference") == folder_digest(weights("mini-judge"))
    assert of_reward("frechet") == of_reward("vendi") == folder_digest(weights("mini-unet") / "vae")
    assert of_reward("oracle") is None

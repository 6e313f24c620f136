"""The recipes for real models, two updates each, on tiny random checkpoints of the very same classes."""

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_imagereward
import tiny_more
import tiny_vlm
import torch
from diffusers import EulerAncestralDiscreteScheduler
from tiny_reward import brightness
from tiny_training import learned, numbers, result

from promptloop.processes import Processes
from promptloop.recipes import real, runs
from promptloop.recipes.grpo import objective_of
from promptloop.recipes.reading import settings_from
from promptloop.recipes.real import COMMON, FIXED
from promptloop.recipes.settings import Grpo
from promptloop.recipes.training import RECIPES, listed, made_by, settings_given

TABLES = {"sd15_imagereward": real.SD15, "sdxl_imagereward": real.SDXL, "sdxl_turbo_composite": real.TURBO,
          "sd35_imagereward": real.SD35, "flux_imagereward": real.FLUX}  # fmt: skip
SMALL = ["--steps", "2", "--queries", "2", "--group", "4", "--denoising-steps", "3", "--refinements", "2",
         "--max-new-tokens", "6", "--image-size", "32", "--base-every", "1", "--sheet-every", "2",
         "--noise", "fresh"]  # fmt: skip
DOCS = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
PROMPTS = [
    "a red circle",
    "two blue stars",
    "a red  circle",
    "fog",
    "a jade disc and a golden block on grass",
]
TOLD = r"5 prompts in .*prompts.jsonl: 2 are used; 1 said before, 1 shorter than 8 characters, " \
    r"1 of more than \d+ tokens of the text encoder"  # fmt: skip


def shown(value: Any) -> str:
    return f"`{value[0]} {value[1]}`" if isinstance(value, tuple) else f"`{value}`"


def turbo() -> Any:
    pipe = tiny.sdxl()
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing"
    )
    return pipe


BACKBONES: dict[str, Callable[[], Any]] = {
    "sd15_imagereward": tiny.sd,
    "sdxl_imagereward": tiny.sdxl,
    "sdxl_turbo_composite": turbo,
    "sd35_imagereward": lambda: tiny.sd3(t5=24),
    "flux_imagereward": lambda: tiny_more.flux(t5=24),
}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy of the recipes' class, ImageReward, and prompts."""
    folder = tmp_path_factory.mktemp("real")
    tiny_vlm.build("qwen2_5_vl", folder / "policy")
    tiny_imagereward.saved(folder / "imagereward")
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"caption": text}) for text in PROMPTS))
    return folder


@pytest.mark.parametrize("recipe", [name for name in TABLES if name != "sd15_imagereward"])
def test_a_recipe_runs_end_to_end(
    recipe: str, there: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    """Fails when a recipe's settings do not fit its classes, a term of the reward is not told, the counts of
    the prompts are not, or the policy is not trained.
    """
    backbone, run = tiny.saved(BACKBONES[recipe](), tmp_path / "backbone"), tmp_path / "run"
    reward = f"imagereward:{there / 'imagereward'}"
    if "composite" in recipe:
        reward = f"0.25*{reward} + 1*judge:{there / 'policy'}"
    given = ["--backbone", str(backbone), "--policy", str(there / "policy"), "--reward", reward,
             "--prompts", str(there / "prompts.jsonl"), *SMALL, "--out", str(run)]  # fmt: skip
    if "flux" in recipe:
        given += ["--size", "64"]  # its tiny folder says 1024
    code, out, err = command("train", recipe, *given)
    assert code == 0, err
    assert "2 updates" in out and re.search(TOLD, err), err
    assert learned(result(run)) and (run / "sheets" / "000002.png").is_file()
    lines = numbers(run)
    assert len(lines) == 2 and all("base" in line and line["refused"] <= 1 for line in lines)
    if "composite" in recipe:
        for line in lines:
            told = 0.25 * line["reward/imagereward"] + line["reward/judge"]
            assert line["reward"] == pytest.approx(told, abs=2e-6)


def test_what_flux_is_told_reaches_training(there: Path, tmp_path: Path) -> None:
    """Fails when the setting is not handed to the backbone, or one without the input takes it in silence."""
    dev, other = (str(tiny.saved(build(), tmp_path / name)) for name, build in (
        ("flux", tiny_more.flux), ("sd", tiny.sd)))  # fmt: skip

    def told(backbone: str, scale: str) -> Any:
        given = {"backbone": backbone, "policy": str(there / "policy"), "prompts": "embedded"}
        settings = settings_from(real.flux_imagereward, {**given, "embedded_guidance": scale})
        denoiser: Any = objective_of(settings, brightness, torch.device("cpu"), Processes()).denoiser
        return denoiser.embedded_guidance

    assert (told(dev, "7"), told(dev, "none")) == (7.0, 3.5)
    with pytest.raises(ValueError, match=r"embedded_guidance is 7\.0, but this StableDiffusionPipeline"):
        told(other, "7")
    with pytest.raises(ValueError, match=r"embedded_guidance is -1\.0; it must be a finite number"):
        real.flux_imagereward(embedded_guidance=-1.0)


def test_the_commands_of_the_docs(
    there: Path, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SD 1.5 as docs/recipes.md has it, in few and small steps; the settings of all other commands there."""
    blocks = re.findall(r"^```(?:sh|text)\n(.*?)^```", DOCS, flags=re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line.split("promptloop ", 1)[1]) for block in blocks for line in block.splitlines()]
    assert len(lines) == 8
    for words in lines:
        if words[0] == "train":
            make = made_by(words[1])
            assert settings_from(make, settings_given([w for w in words[2:] if w != "--out"][:-1]))
    tiny.saved(tiny.sd(), tmp_path / "models" / "sd15")
    shutil.copytree(there / "policy", tmp_path / "models" / "qwen")
    shutil.copytree(there / "imagereward", tmp_path / "models" / "imagereward")
    shutil.copy(there / "prompts.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*lines[0], *SMALL)
    assert code == 0 and re.search(TOLD, err), err
    assert learned(result(Path("runs/sd15")))
    code, out, err = command(*lines[1], "-n", "1", "--steps", "2", "--refinements", "2")
    assert code == 0 and "1 images" in out, err
    going_on(Path("runs/sd15"), Path("prompts.jsonl"), command)


def going_on(run: Path, file: Path, command: Callable[..., Any]) -> None:
    """Resumed it is the run it was; with other prompts in the file it is not gone on with."""
    (run / "policy").rename(run.with_name("policy"))
    code, _, err = command("train", "sd15_imagereward", "--resume", "--out", str(run))
    assert code == 0 and "no longer holds" not in err, err
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"] == "sd15_imagereward" and config["settings"]["image_size"] == 32
    assert json.loads((run / "policy" / "generation_config.json").read_text())["image_size"] == 32
    before = file.read_text()
    file.write_text(before.replace("blue", "pink"))
    code, _, err = command("train", "sd15_imagereward", "--resume", "--out", str(run))
    file.write_text(before)
    assert code == 2 and f"{file} no longer holds what" in err


def test_every_hyper_parameter_stands_in_its_table() -> None:
    """With where it comes from; none is left to a default. Fails when one is added and not said there."""
    wanted = {field.name for field in dataclasses.fields(Grpo)}
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", DOCS, flags=re.MULTILINE))
    for name, (value, origin) in COMMON.items():
        assert rows[name] == f"{shown(value)} | {origin}" or any(name in table for table in TABLES.values())
    for name, (value, origin) in FIXED.items():
        assert rows[name] == f"{shown(value)} | {origin}"
    for name in dict.fromkeys(name for table in TABLES.values() for name in table):
        said_of = [{**COMMON, **table}[name] for table in TABLES.values()]
        assert " | ".join(f"{shown(value)}, {origin}" for value, origin in said_of) in DOCS
    for name, table in TABLES.items():
        said = {**COMMON, **table}
        assert set(said) == wanted, name
        assert all(len(origin) > 3 for _, origin in said.values())
        make = made_by(name)
        made, other = make(), make(steps=7, prompts="mine.txt")
        assert all(getattr(made, key) == value for key, (value, _) in said.items())
        assert made.fixed() == {key: value for key, (value, _) in FIXED.items()}
        assert other == dataclasses.replace(made, steps=7, prompts="mine.txt")
    assert (
        set(RECIPES) == set(runs.TRAINS) == {*TABLES, "mini", "mini-dpo", "reward", "mini-reward", "d2-align"}
    )


def test_the_recipes_are_listed(command: Callable[..., Any]) -> None:
    code, out, _ = command("train")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert code == 0 and set(rows) == set(RECIPES) and listed() in out
    assert all(len(row) > 20 for row in rows.values())


REFUSED = [
    (["sd15_imagerewrd"], "did you mean 'sd15_imagereward'"),
    (["--prompts", "nowhere.txt"], "no prompts 'nowhere.txt'"),
    (["--prompt-column", "captoin"], "did you mean 'caption'"),
    (["--prompt-chars", "30 300"], "an update asks 2 queries"),
    (["--prompt-tokens", "2"], "an update asks 2 queries"),
    (["--prompt-chars", "9 8"], "(9, 8)"),
    (["--reward", "imagereward:nowhere"], "no 'nowhere' for the reward imagereward"),
    (["--reward", "2*oracle + 1*oracle"], "has a term twice"),
    (["--reward", "judge"], "give judge:FOLDER_OR_ID"),
    (["--offload", "all"], "choose one of"),
    (["--image-size", "0"], "image_size is 0"),
]


@pytest.mark.parametrize(("arguments", "wanted"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_a_recipe_refuses(
    arguments: list[str], wanted: str, there: Path, command: Callable[..., Any], tmp_path: Path,
    models: list[str],
) -> None:  # fmt: skip
    given = {"--reward": f"imagereward:{there / 'imagereward'}", "--prompts": str(there / "prompts.jsonl"),
             "--queries": "2", "--steps": "1"}  # fmt: skip
    recipe = arguments[0] if len(arguments) == 1 else "sd15_imagereward"
    if len(arguments) == 2:
        given[arguments[0]] = arguments[1]
    words = [word for pair in given.items() for word in pair]
    code, _, err = command("train", recipe, *models, *words, "--out", str(tmp_path / "run"))
    assert code == 2 and wanted in err and "Traceback" not in err

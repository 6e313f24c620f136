"""Settings that once were let through: refused, or told, in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_more
import tiny_vlm
import torch

from promptloop import CFG, Endpoint, load, load_policy
from promptloop.denoisers import from_pipeline
from promptloop.recipes import embedded, real
from promptloop.recipes.early import foreign
from promptloop.recipes.prompts import prompts_from
from promptloop.recipes.tracking import idle, told


def test_a_dtype_by_its_name(tmp_path: Path) -> None:
    """Fails if a name is float32 in silence."""
    folder = tiny.saved(tiny.sd(), tmp_path / "sd")
    assert load(folder, dtype="bfloat16").network.dtype == torch.bfloat16
    policy: Any = load_policy(str(tiny_vlm.build("idefics3", tmp_path / "vlm")), dtype="bfloat16")
    assert policy.network.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'bf16'; give float32"):
        load(folder, dtype="bf16")


def test_numbers(tmp_path: Path) -> None:
    """Fails where one of them is let through."""
    vlm, nan, url = str(tiny_vlm.build("idefics3", tmp_path)), float("nan"), "http://h/v1"
    texts: Any = ["a", "b"]
    for make, said in (
        (lambda: embedded.mini(guidance=-1.0), "guidance is -1.0"),
        (lambda: from_pipeline(tiny_more.flux(), embedded_guidance=nan), "embedded_guidance is nan"),
        (lambda: from_pipeline(tiny_more.flux(), embedded_guidance=-1.0), "embedded_guidance is -1"),
        (lambda: load_policy(vlm, temperature=nan), "temperature is nan"),
        (lambda: load_policy(vlm, image_size=0), "image_size is 0"),
        (lambda: Endpoint(url, "m", image_size=-3), "image_size is -3"),
        (lambda: CFG(2.0, texts), "give one text for all"),
        (lambda: CFG(1.0, "blurry"), "does nothing at a guidance scale of 1"),
        (lambda: CFG(nan), "finite"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
    CFG(-1.0)  # away from the prompt: odd, and somebody's wish


def test_a_recipe_says_whose_settings_it_has(tmp_path: Path) -> None:
    folder = str(tiny.saved(tiny.sdxl(), tmp_path))
    assert "for a StableDiffusionPipeline, but" in foreign("sd15_imagereward", folder)
    assert not foreign("sdxl_imagereward", folder) and not foreign("mini", folder)


def test_an_update_that_teaches_nothing_is_told() -> None:
    line = {"refused": 1.0, "groups_dropped": 0.0, "kept": 0.0, "tokens_per_draft": 4.0}
    assert "every draft was refused" in idle(line) and "refused 1" in told(line)
    assert "all rewards are the same" in idle({"refused": 0.0, "groups_dropped": 1.0})
    assert not idle({"refused": 0.5, "groups_dropped": 0.5})


def test_prompt_files(tmp_path: Path) -> None:
    """Fails if the first prompt is taken for a column's name, or a row's other column for the prompt."""
    csv, rows, txt = tmp_path / "a.csv", tmp_path / "a.jsonl", tmp_path / "a.txt"
    for text in ("a red cat\na dog\n", "prompt;id\na dog;1\n"):
        csv.write_text(text)
        with pytest.raises(ValueError, match="put a line 'prompt' above it"):
            prompts_from(str(csv))
    csv.write_text("caption\na dog\n")
    assert prompts_from(str(csv), column="caption").texts == ("a dog",)
    rows.write_text('{"prompt": "a"}\n{"caption": "b"}\n')
    with pytest.raises(ValueError, match="line 2 has no column 'prompt'"):
        prompts_from(str(rows))
    txt.write_text("a dog\n")
    heard: list[str] = []
    prompts_from(str(txt), column="caption", split="test", say=heard.append)
    assert "'caption' is not used" in heard[0] and "'test' is not used" in heard[1]


def test_size_and_lora_of_the_backbone() -> None:
    settings = real.sd15_imagereward(size=256, lora="ink=a/b:0.5 + c")
    assert settings.size == 256 and settings.loras() == ["ink=a/b:0.5", "c"]
    assert real.sd15_imagereward().loras() == []
    with pytest.raises(ValueError, match="size is 0"):
        real.sd15_imagereward(size=0)

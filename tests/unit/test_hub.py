"""LoRAs on the hub: what is there is asked before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from promptloop.denoisers import hub
from promptloop.denoisers.loras import LoraSource, file_of

MANY = ["README.md", "ink_1step.safetensors", "ink_2step.safetensors", "whole/model.safetensors"]
ONE = ["adapter_config.json", "adapter_model.safetensors", "checkpoint-5/adapter_model.safetensors"]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, list[str]]]:
    """Two repositories, and a note of what of them was downloaded."""
    there, done = {"some/inks": MANY, "some/one": ONE}, list[tuple[str, list[str]]]()

    def download(repo: str, *, allow_patterns: list[str]) -> str:
        done.append((repo, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "list_repo_files", there.__getitem__)
    monkeypatch.setattr(hub, "snapshot_download", download)
    return done


def test_one_file_is_downloaded(downloads: Any, tmp_path: Path) -> None:
    """Fails if a repository is downloaded to be counted, or the settings beside a peft file are forgotten."""
    assert file_of("some/inks/ink_2step.safetensors") == tmp_path / "ink_2step.safetensors"
    assert file_of("some/inks/whole/model.safetensors") == tmp_path / "whole" / "model.safetensors"
    assert file_of("some/one") == tmp_path / "adapter_model.safetensors"
    assert downloads == [("some/inks", ["ink_2step.safetensors", "adapter_config.json"]),
                         ("some/inks", ["whole/model.safetensors", "whole/adapter_config.json"]),
                         ("some/one", ["adapter_model.safetensors", "adapter_config.json"])]  # fmt: skip
    assert LoraSource("some/inks/ink_2step.safetensors").name == "ink_2step"


@pytest.mark.parametrize("path", ["some/inks", "some/inks/ink_4step.safetensors"])
def test_nothing_is_downloaded_where_it_is_not_one_file(path: str, downloads: Any) -> None:
    said = f"lora {path} must be one .safetensors file: name it as some/inks/FILE; found: ink_1step"
    with pytest.raises(ValueError, match=said):
        file_of(path)
    assert downloads == []


def test_offline_the_cache_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fails if a LoRA that was downloaded before needs the network."""

    def listing(repo: str) -> list[str]:
        raise OfflineModeIsEnabled("offline")

    def cached(repo: str, **how: Any) -> str:
        return str(tmp_path)

    (tmp_path / "deep").mkdir()
    for name in ("soft.safetensors", "deep/ink.safetensors"):
        (tmp_path / name).touch()
    monkeypatch.setattr(hub, "list_repo_files", listing)
    monkeypatch.setattr(hub, "snapshot_download", cached)
    assert file_of("some/one") == tmp_path / "soft.safetensors"
    assert file_of("some/one/deep/ink.safetensors") == tmp_path / "deep" / "ink.safetensors"


def test_what_is_nowhere_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="lora no/where/at.txt does not exist; give a"):
        file_of("no/where/at.txt")
    with pytest.raises(ValueError, match="lora no/where is neither here nor on the hub"):
        file_of("no/where")  # offline, and not in the cache

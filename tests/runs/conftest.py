"""One run on tiny random models, for the tests of what it leaves and of what is made of it."""

from pathlib import Path

import pytest
import tiny
import tiny_vlm
from tiny_runs import QUICK

import promptloop


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.saved(tiny.sd(), tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_vlm.build("idefics3", tmp_path_factory.mktemp("vlm")))


@pytest.fixture(scope="session")
def folder(backbone: str, policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run on disk, which several tests read."""
    out = tmp_path_factory.mktemp("run") / "out"
    promptloop.generate("a red <b>circle", backbone=backbone, policy=policy, compare=True, out=out, **QUICK)
    return out

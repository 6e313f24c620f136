"""Tests run offline and on one thread per worker."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Any]]:
    """Runs the command line in this process; gives exit code, output and error stream."""

    from promptloop import cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["promptloop", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        written = capsys.readouterr()
        return int(end.value.code or 0), written.out, written.err

    yield run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a tiny backbone and a tiny policy."""
    import tiny
    import tiny_vlm

    root = tmp_path_factory.mktemp("models")
    backbone = tiny.saved(tiny.sd(), root / "sd")
    return ["--backbone", str(backbone), "--policy", str(tiny_vlm.build("idefics3", root / "vlm"))]

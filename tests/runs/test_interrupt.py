"""SIGINT and SIGTERM in the middle of an update: the run ends, says how, and can be gone on with."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import SMALL, numbers, result, two, updates_done

from promptloop import checkpoint
from promptloop.interrupt import Interrupt, Stopped
from promptloop.objectives.contract import Batch
from promptloop.processes import Processes
from promptloop.train import Line, whole_updates

SIZES = ["tiny_reward:Knocking" if word == "tiny_reward:brightness" else word for word in SMALL]
SIZES[SIZES.index("--save-every") + 1] = "50"
SIZES[SIZES.index("--sheet-every") + 1] = "0"  # the reward of the query alone would be a call more
SIZES += ["--base-every", "0", "--steps", "4", "--denoiser-dtype", "float32"]
IN_UPDATE_3 = "3"  # the reward's call number 0 is the check at the start; this one is in update 3


def processes_of(run: Path) -> list[str]:
    """Living processes whose command line names the run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_bytes().decode().replace("\0", " ")
            if str(run) in said and int(folder.name) != os.getpid():
                found.append(said)
        except OSError:
            continue
    return found


def test_an_interrupt_leaves_a_checkpoint_and_the_run_goes_on(
    models: list[str], command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In update 3, and before any update was whole. The resumed run equals one that was not stopped.

    Fails when the last whole update is not saved, the handler stays behind, or the exit code says success.
    """
    before = signal.getsignal(signal.SIGTERM)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setenv("KNOCK", "99 SIGINT")
    code, _, err = command("train", "mini", *models, *SIZES, "--out", str(whole))
    assert code == 0, err
    monkeypatch.setenv("KNOCK", f"{IN_UPDATE_3} SIGINT")
    code, _, err = command("train", "mini", *models, *SIZES, "--out", str(parts))
    assert code == 130
    assert f"stopped by SIGINT; checkpoint 2 is in {parts / 'checkpoints'}: go on by --resume" in err
    assert checkpoint.steps(parts) == [2] and updates_done(parts) == 2
    monkeypatch.setenv("KNOCK", "99 SIGINT")
    code, _, err = command("train", "mini", "--resume", "--out", str(parts))
    assert code == 0, err
    a, b = result(whole), result(parts)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert numbers(whole) == numbers(parts)
    monkeypatch.setenv("KNOCK", "1 SIGTERM")
    code, _, err = command("train", "mini", *models, *SIZES, "--out", str(tmp_path / "new"))
    assert code == 143 and "no update was whole, so nothing is saved" in err
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_ends_both_processes(
    models: list[str], command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM to torchrun in update 3: both ranks end, one sentence, a checkpoint, and one process goes on.

    Fails when a rank lives on, or the checkpoint is lost.
    """
    run = tmp_path / "run"
    err = two("--out", str(run), *models, *SIZES, ends=1, KNOCK=f"{IN_UPDATE_3} SIGTERM parent")
    assert err.count("promptloop: stopped by SIGTERM; checkpoint 2 is in") == 1, err
    assert not processes_of(run)
    assert checkpoint.steps(run) == [2] and updates_done(run) == 2
    monkeypatch.setenv("KNOCK", "99 SIGINT")
    code, out, err = command("train", "mini", "--resume", "--out", str(run))
    assert code == 0 and "4 updates" in out, err
    assert [line["update"] for line in numbers(run)] == [1, 2, 3, 4]


def test_where_weights_are_divided_a_signal_waits_for_the_update(tmp_path: Path) -> None:
    """All processes must save together. Fails when a patient run stops inside an update, or does not save."""
    done: list[int] = []

    def update_of(number: int, hold: Callable[[], None]) -> tuple[Batch, Line]:
        hold()
        os.kill(os.getpid(), signal.SIGTERM) if number == 1 else None
        return Batch(()), {}

    with (
        Interrupt(patient=True) as interrupt,
        pytest.raises(Stopped, match="stopped by SIGTERM; checkpoint 2"),
    ):
        whole_updates(range(5), 50, tmp_path, Processes(), interrupt, update_of, lambda *_: None,
                      lambda k, _: done.append(k))  # fmt: skip
    assert done == [2]


def test_a_held_signal_waits() -> None:
    """Fails when a signal is raised while the weights move, is lost, or a second one is raised anew."""
    with Interrupt() as interrupt:
        interrupt.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.pending == signal.SIGTERM
        with pytest.raises(Stopped) as stop:
            interrupt.release()
        assert stop.value.code == 143
    with Interrupt(patient=True) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        interrupt.release()
        assert interrupt.pending == signal.SIGINT

"""Two processes never train in one folder, and a killed one keeps nobody out."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptloop.recipes import runs
from promptloop.recipes.embedded import mini
from promptloop.recipes.grpo import grpo
from promptloop.recipes.lock import LOCK
from promptloop.recipes.mini_dpo import MiniDPO, mini_dpo

HOLDS = (
    "import sys, time; from pathlib import Path; from promptloop.recipes.lock import Lock\n"
    "lock = Lock(Path(sys.argv[1]), print); print('held', flush=True); time.sleep(60)"
)


@pytest.mark.parametrize(
    ("recipe", "function", "settings"), [("mini", grpo, mini()), ("mini-dpo", mini_dpo, MiniDPO())]
)
def test_a_second_process_is_refused_until_the_first_is_killed(
    recipe: str, function: Callable[..., Any], settings: Any, tmp_path: Path
) -> None:
    """Fails without the lock, where only one of fresh and resumed takes it, or where a kill leaves it."""
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    for resume in (False, True):
        with pytest.raises(ValueError, match=rf"another process is training in .*\(pid {other.pid}\)"):
            function(settings, tmp_path, recipe=recipe, resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with runs.begin(tmp_path, recipe, settings, resume=False), pytest.raises(ValueError, match="another"):
        runs.begin(tmp_path, recipe, settings, resume=True)
    runs.begin(tmp_path, recipe, settings, resume=True).release()


def test_what_is_no_folder_to_train_in_is_left_as_it_is(tmp_path: Path) -> None:
    """Fails where a lock is left in a folder that is refused, or a file leads to an errno."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        runs.begin(tmp_path, "mini", mini(), resume=False)
    with pytest.raises(ValueError, match=r"mine\.txt is a file; give a folder"):
        runs.begin(tmp_path / "mine.txt", "mini", mini(), resume=False)
    with pytest.raises(ValueError, match="is not a folder of yours"):
        runs.begin(tmp_path / "mine.txt" / "run", "mini", mini(), resume=False)
    with pytest.raises(ValueError, match="holds no run to resume"):
        runs.begin(tmp_path / "run", "mini", mini(), resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]

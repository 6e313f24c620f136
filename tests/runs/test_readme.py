"""Every block of the README runs, and every Python block of docs/ (of models.md in tests of their own)."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from promptloop import cli
from promptloop.world import study

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SHELL = [block for language, block in BLOCKS if language == "sh"]
DOCS = {  # a page's blocks follow one another
    file.stem: "".join(re.findall(r"^```python\n(.*?)^```", file.read_text(), flags=re.MULTILINE | re.DOTALL))
    for file in sorted((ROOT / "docs").rglob("*.md"))
    if file.name != "models.md"  # its hub ids need tiny folders: test_models_*.py, parity/test_backbones.py
}
PYTHON = [block for language, block in BLOCKS if language == "python"]


def test_the_first_two_commands() -> None:
    assert SHELL[:2] == ["make demo\n", "make test\n"]
    assert len(PYTHON) == 2 and all(len(block.splitlines()) <= 6 for block in PYTHON)
    assert {language for language, _ in BLOCKS} == {"sh", "python"}


def test_make_test_runs_lint_types_and_tests() -> None:
    alone = {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "WORKERS"}
    planned = subprocess.run(
        ["make", "--dry-run", "test"], cwd=ROOT, check=True, capture_output=True, text=True, env=alone
    )
    for command in ("ruff check", "mypy", "OMP_NUM_THREADS=1", "pytest -n 2"):
        assert command in planned.stdout, planned.stdout
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_make_demo(tmp_path: Path) -> None:
    """The README's first command, in the environment that runs the tests."""
    venv = Path(sys.prefix)
    up_to_date = [f"-o{venv / name}" for name in ("bin/python", ".installed", ".installed-dev")]
    command = ["make", *up_to_date, "demo", f"VENV={venv}", f"OUT={tmp_path / 'demo'}"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "mean" in shown and "soft" in shown
    written = {file.name for file in (tmp_path / "demo").iterdir()}
    assert {"trace.html", "trace.json", "00.png", "00-base.png", "00-filmstrip.png", "05.png"} <= written


@pytest.mark.slow
def test_pip_install(tmp_path: Path) -> None:
    """`pip install .` without its dependencies: the wheel holds the whole package, weights included."""
    assert "pip install .\n" in SHELL
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    listed = subprocess.run(
        ["git", "ls-files", "src/promptloop"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    missing = [name for name in listed.stdout.split() if not (tmp_path / name.removeprefix("src/")).is_file()]
    assert not missing and (tmp_path / "bin" / "promptloop").is_file()


@pytest.mark.slow
def test_shell_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in SHELL for line in block.splitlines() if line.startswith("promptloop ")]
    assert len(lines) >= 2
    for line in lines:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0, capsys.readouterr()
    assert "the same" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("block", [*PYTHON, *filter(None, DOCS.values())])
def test_python_blocks(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a name or setting that a page uses is renamed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tuned").mkdir(parents=True)  # trained LoRAs, where the pages have them
    for place, name in (("tuned/backbone", "tuned"), ("colour", "tuned"), ("count", "tuned-preference")):
        (tmp_path / "runs" / place).symlink_to(study(name, 0))
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    if "result" in names:
        assert tuple(names["result"].images.shape) == (1, 3, 64, 64)  # type: ignore[attr-defined]


def test_every_named_file_exists() -> None:
    for name in re.findall(r"`([\w/]+(?:\.py|\.txt|/))`", README):
        found = [(ROOT / place / name).exists() for place in ("", "src/promptloop")]
        assert any(found) or name.startswith("out/"), f"the README names {name}, which is not there"

"""The example on every page of docs/methods/ that is about steering runs as printed."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"
NAMES = ["ledger", "fk", "das", "svdd", "demon", "best-of", "zero-order"]


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str) -> None:
    """Fails when a setting that a page names is renamed."""
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / f"{name}.md").read_text(encoding="utf-8"), re.S)
    exec(compile(code, f"{name}.md", "exec"), {})

"""What is told of a phase where there is no terminal."""

import pytest

from promptloop.terminal import Pace, progress_bar


def test_how_long_it_still_takes() -> None:
    """Fails when the updates that a resumed run found done count for its pace."""
    now = [100.0]
    pace = Pace(10, lambda: now[0])
    assert pace.left(10, 20) == ""
    now[0] += 30
    assert pace.left(13, 20) == ", 0:01:10 left"
    assert pace.left(20, 20) == ""


def test_a_line_for_each_row_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """Fails when a redirected log says nothing of the rows, or not how long the rest takes."""
    with progress_bar() as tell:
        for k in range(38):
            tell(f"measuring: row [{k}]", k, 38)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 38 and lines[0] == "measuring: row [0] (0 of 38)"
    assert lines[37] == "measuring: row [37] (37 of 38, 0:00:00 left)"

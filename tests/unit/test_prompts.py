"""Prompt sets: every kind of file, what is left out and told, the order, and what is wrong with a file."""

import importlib.util
import json
from pathlib import Path

import pytest

from promptloop.recipes import prompts
from promptloop.recipes.prompts import Prompts, prompts_from

ROWS = ["a red circle", "  a   red circle ", "two\nstars, blue", "", "x", "a" * 50, 'the word "yes"',
        "two stars, blue", "xy", "b" * 49]  # fmt: skip
KEPT = ("a red circle", "two stars, blue", 'the word "yes"', "xy", "b" * 49)


def written(folder: Path, kind: str) -> Path:
    import pyarrow as pa
    from pyarrow import csv, parquet

    table = pa.table({"id": list(range(len(ROWS))), "caption": ROWS})
    file = folder / f"set.{kind}"
    if kind == "txt":
        file.write_text("\ufeff" + "\r\n".join(row.replace("\n", " ") for row in ROWS))
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps({"id": k, "caption": row}) for k, row in enumerate(ROWS)))
    elif kind == "csv":
        csv.write_csv(table, file)
    elif kind == "parquet":
        parquet.write_table(table, file)
    else:
        parquet.write_table(table, folder / "train-0.parquet")
        return folder
    return file


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet", "datasets"])
def test_every_kind_gives_the_same_prompts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when white space parts equal prompts, a length is off by one, or a count is not told."""
    if kind == "datasets":
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "data").mkdir()
    source = written(tmp_path / "data" if kind == "datasets" else tmp_path, kind)
    said: list[str] = []
    made = prompts_from(
        str(source), column=None if kind == "txt" else "caption", chars=(2, 49), say=said.append
    )
    assert made.texts == KEPT
    assert said == [
        f"10 prompts in {source}: 5 are used; 2 said before, 1 empty, 1 shorter than 2 characters, "
        "1 longer than 49 characters"
    ]
    shorter = made.without("read in part", lambda text: len(text) < 15)
    assert shorter.texts == (KEPT[0], *KEPT[2:4]) and shorter.told().endswith("2 read in part")


def test_the_order_is_a_function_of_the_update_and_every_pass_sees_all() -> None:
    """Fails when an update depends on those before it, or a pass repeats the order of another."""
    made = Prompts("here", tuple(f"prompt {k}" for k in range(10)), seed=3)
    asked = [made.of(update, 4) for update in range(10)]
    assert [made.of(update, 4) for update in reversed(range(10))] == asked[::-1]
    said = [text for texts in asked for text in texts]
    passes = [said[k : k + 10] for k in range(0, 40, 10)]
    assert all(sorted(turn) == sorted(made.texts) for turn in passes)
    assert len({tuple(turn) for turn in passes}) == 4
    assert Prompts("here", made.texts, seed=4).of(0, 10) != made.of(0, 10)


WRONG = [
    ("set.jsonl", '{"prompt": "a"}\n{"promt": "b", "id": 1}\n', None, "line 2 has no column 'prompt'"),
    ("set.jsonl", '{"caption": "a", "id": 1}\n', "captoin", "no column 'captoin'; did you mean 'caption'"),
    ("set.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', None, "line 3 is not JSON"),
    ("set.jsonl", '{"prompt": 3}\n', None, "line 1: the prompt is a int"),
    ("set.jsonl", '["a"]\n', None, "line 1 is a list"),
    ("set.csv", "id,text\n1,a\n2,b,c\n", "text", "line 3 has 3 columns, not 2"),
    ("set.csv", "id,text\n1,a\n", None, "has the columns id, text; say which by --prompt-column"),
    ("set.csv", 'id,text\n1,"a\n', "text", "is not CSV"),
    ("set.txt", b"a\nb\xff\n", None, "line 2 is not UTF-8"),
    ("set.txt", "\n\n", None, "no prompt is left to train on: 2 prompts in"),
    ("set.parquet", "a", None, "cannot be read as Parquet"),
    ("set.text", "a", None, "did you mean '.txt'"),
    ("nothing", None, None, "no prompts"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "column", "wanted"), WRONG, ids=[row[3] for row in WRONG])
def test_what_is_wrong_with_a_file_is_told(
    name: str, content: str | bytes | None, column: str | None, wanted: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as told:
        prompts_from(str(file), column=column)
    assert wanted in str(told.value) and str(file) in str(told.value)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, found = written(tmp_path, "parquet"), importlib.util.find_spec
    absent = ("pyarrow", "datasets")
    monkeypatch.setattr(prompts, "find_spec", lambda name: None if name in absent else found(name))
    for where in (str(source), "somebody/prompts"):
        with pytest.raises(ValueError, match=r"pip install promptloop\[data\]"):
            prompts_from(where)

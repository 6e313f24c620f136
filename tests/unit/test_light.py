"""What is told before anything heavy is imported: mistyped names, and the settings of a recipe."""

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from promptloop.recipes.reading import read_as
from promptloop.recipes.titles import TITLES, claim_named
from promptloop.recipes.training import RECIPES, defaults, made_by, told

HEAVY = (
    "import sys; sys.argv = ['promptloop', *sys.argv[1:]]\n"
    "from promptloop.cli import main\n"
    "try: main()\n"
    "except SystemExit as end: code = end.code\n"
    "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'peft'} & set(sys.modules)\n"
    "assert not heavy, heavy\n"
    "raise SystemExit(code)"
)


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        ("train mini --stpes 2", 2, "did you mean 'steps'"),
        ("train mini-dpo --stpes 2", 2, "did you mean 'steps'"),
        ("train sd15_imagereward --resume --stpes 2", 2, "did you mean 'steps'"),
        ("train mino", 2, "did you mean 'mini'"),
        ("reproduce C99", 2, "unknown claim 'C99'; did you mean 'C9'?"),
        ("train mini --window 0 2", 2, "two numbers in one word: --window 0,0.75"),
        ("train mini --help", 0, "--window none"),
        ("train", 0, "the recipes:"),
        ("rewards", 0, " ready          the embedded world's exact grade"),
        ("rewards oracle", 0, "scale 0 to 1, not differentiable"),
        ("rewards orcale", 2, "did you mean 'oracle'?"),
    ],
)
def test_nothing_heavy_is_imported_for_it(arguments: str, code: int, wanted: str) -> None:
    """Fails when a name is looked at after torch was imported."""
    done = subprocess.run([sys.executable, "-c", HEAVY, *arguments.split()], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert wanted in done.stdout + done.stderr


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_help_tells_every_setting_as_the_recipe_has_it(recipe: str) -> None:
    """Fails when a setting has no meaning, or a default is another than that of a run."""
    said, settings = defaults(recipe), made_by(recipe)()
    assert set(said) == {f.name for f in fields(settings)}
    for name, value in said.items():
        assert value is None or value == getattr(settings, name)
        row = next(
            row for row in told(recipe).splitlines() if row.startswith(f"  --{name.replace('_', '-')} ")
        )
        assert len(row.split(maxsplit=2)) == 3, row


@pytest.mark.parametrize(
    ("wanted", "value", "says"),
    [
        (tuple[float, float] | None, "0", "x is '0'; give 2 numbers in one word, like 0,0.75"),
        (tuple[int, int], "1 b", "x is '1 b'; give 2 numbers in one word, like 8,400"),
        (int, "99999999999999999999999", "x is 99999999999999999999999; give a whole number of at most"),
        (int, "9" * 5000, "it must be of kind int"),
        (int, "inf", "x is 'inf'; it must be of kind int"),
    ],
)
def test_a_value_of_another_kind(wanted: Any, value: str, says: str) -> None:
    with pytest.raises(ValueError, match="x is") as refused:
        read_as(wanted, value, "x")
    assert says in str(refused.value)


def test_claims_by_name() -> None:
    """In the user's letters where it is unknown. Fails when a claim has no title here."""
    from promptloop.recipes.claims import CLAIMS

    assert list(CLAIMS) == list(TITLES)
    assert claim_named("c3") == "C3" and claim_named("Feedback") == "feedback"

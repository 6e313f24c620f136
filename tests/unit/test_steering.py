"""From `--control NAME:SETTING=VALUE,...` to controls: what is read, and what is refused with its reason."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from promptloop.controls import CFG, FK, BestOf, PromptGuidance, Scheduled
from promptloop.controls.recurrence import Recurrence
from promptloop.denoisers import load
from promptloop.recipes import methods, steering
from promptloop.recipes.job import Job
from promptloop.solvers import DDIM, Scheduler
from promptloop.world import weights

DOCS = Path(__file__).parents[2] / "docs" / "methods" / "README.md"


def made(*specs: str, solver: str = "", denoiser=None) -> steering.Steering:
    return steering.steering(specs, solver, denoiser, "cpu")


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_tells_what_it_is(name: str) -> None:
    """Fails where a row of the table names nothing, or something without a docstring or settings."""
    text = methods.told(name)
    assert text.startswith(f"{name}: ") and "Settings:\n  " in text and "Needs: " in text
    assert methods.first_sentence(name) in methods.listed()


def test_the_table_of_the_docs_is_the_one_of_the_code() -> None:
    """Every method has a row in docs/methods/README.md, with its needs and costs."""
    rows = dict(re.findall(r"^\| `([\w-]+)` \|(.*)$", DOCS.read_text(), re.MULTILINE))
    assert list(rows) == list(methods.METHODS)
    for name, method in methods.METHODS.items():
        assert method.costs in rows[name] and method.needs in rows[name], name


def test_settings_are_read_as_what_they_are() -> None:
    fk, best = made(
        "fk:reward=oracle,particles=3,strength=2e1,pick=best", "best-of:reward=oracle,prune=2:3+4:1"
    ).controls
    assert isinstance(fk, FK) and (fk.particles, fk.strength, fk.pick) == (3, 20.0, "best")
    assert isinstance(best, BestOf) and best.prune == {2: 3, 4: 1}
    (cfg,) = made("cfg:scale=3,window=0.2+0.8").controls
    assert cfg == CFG(3.0, window=(0.2, 0.8))
    assert made("prompt-guidance:w=0+1+2").controls == (PromptGuidance([0.0, 1.0, 2.0]),)
    assert made("scheduled:prompts=0:a red circle+4:two circles").controls == (
        Scheduled({0: "a red circle", 4: "two circles"}),
    )
    assert made("svdd:reward=oracle").controls[0].strength == math.inf


def test_a_way_to_step_and_a_search_are_not_controls() -> None:
    both = made("recurrence:times=3", "zero-order:reward=oracle,rounds=1")
    assert both.controls == () and both.turn == Recurrence(3) and both.search is not None


def test_solvers_by_name() -> None:
    denoiser = load(weights("mini-turbo"))
    assert made(solver="ddim:eta=0.5").solver == DDIM(0.5) and made().solver is None
    wrapped = made(solver="DPMSolverMultistepScheduler", denoiser=denoiser).solver
    assert isinstance(wrapped, Scheduler)
    assert wrapped.scheduler.config.beta_end == denoiser.scheduler.config.beta_end


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("fkk:reward=oracle", "did you mean 'fk'"),
        ("fk", "lacks reward"),
        ("fk:reward=oracle,partikles=3", "did you mean 'particles'"),
        ("fk:reward=oracle,particles=three", "particles is 'three'"),
        ("fk:reward=oracle,particles", "not SETTING=VALUE"),
        ("fk:reward=oracle,reward=oracle", "twice"),
        ("fk:reward=oracle,pick=worst", "pick is 'worst'"),
        ("cfg:scale=3,window=0.2", "window is '0.2'"),
        ("prompt-loop", "--policy"),
        ("", "unknown method ''"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_loads(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Job(("a red circle",), control=(spec,))


def test_two_searches_and_unknown_solvers_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot both run the loop"):
        Job(("a",), control=("zero-order:reward=oracle", "zero-order:reward=oracle"))
    with pytest.raises(ValueError, match="eta"):
        Job(("a",), solver="ddim:etta=1")
    with pytest.raises(ValueError, match="did you mean 'ddim'"):
        made(solver="dddim", denoiser=load(weights("mini-turbo")))
    with pytest.raises(ValueError, match=r"no reward 'oracel'; did you mean 'oracle'"):
        made("fk:reward=oracel")
    with pytest.raises(ValueError, match="no backbone 'nowhere'"):
        made("rlg:tuned=nowhere,w=2", denoiser=load(weights("mini-turbo")))


def test_the_current_folder_is_no_lora_of_a_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a control without `tuned`, given inside a LoRA's folder, takes that LoRA."""
    monkeypatch.chdir(weights("mini-policy"))
    assert steering.loras(["fk:reward=oracle,particles=2"]) == {}


def test_rewards_of_sets_cannot_steer() -> None:
    """Fails when images are chosen by a value that depends on the others in the batch."""
    for name in ("vendi", "rank(oracle + preference)", "0.5*vendi + oracle"):
        with pytest.raises(ValueError, match="compares the images of a batch"):
            made(f"fk:reward={name},particles=2")

"""Every method of `promptloop methods` from the command line's words to pictures, on the embedded models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import promptloop
from promptloop.controls.matching import LogH
from promptloop.controls.npnet import NPNet, Shape
from promptloop.controls.npnet_weights import save
from promptloop.recipes import methods
from promptloop.world import study

QUERY = "two jade stars right of a golden disc"
TUNED = str(study("tuned", 0))
BRIGHT = """
from dataclasses import dataclass

class Noisy:
    differentiable = True

    def __call__(self, x, level, queries):
        return x.mean(dim=(1, 2, 3))

noisy = Noisy()

def Dark():
    from promptloop.policies.fixed import Template
    return Template("a golden disc")

def early(images, queries, level):
    return level.share * images.mean(dim=(1, 2, 3))
"""
GIVEN = {  # method -> its settings and, where it needs one, a solver that draws
    "scheduled": ("prompts=0:a jade star+2:two jade stars", ""),
    "weighted-tokens": ("prompt=two (jade:1.5) [stars:discs:0.4]", ""),
    "cfg": ("scale=2,window=0+0.5", ""),
    "negative-prompt": ("policy=noisy_reward:Dark,refinements=2", ""),
    "prompt-guidance": ("w=1.5", ""),
    "rlg": (f"tuned={TUNED},w=1.6", ""),
    "blend": (f"tuned={TUNED},weights=1,strength=0.5", ""),
    "reward-gradient": ("reward=preference,scale=2,through=noise,limit=0.5", ""),
    "loss-guidance": ("reward=preference,scale=2,samples=2", ""),
    "noisy-reward-gradient": ("reward=noisy_reward:noisy,scale=2", ""),
    "ascent": ("reward=preference,rate=0.05", ""),
    "recurrence": ("times=2", ""),
    "doit": ("reward=oracle,samples=2", ""),
    "doob-matching": ("h=", ""),
    "fk": ("reward=oracle,particles=2,every=1", "ddim:eta=1"),
    "das": ("reward=preference,particles=2,strength=2", "ddim:eta=1"),
    "svdd": ("reward=oracle,candidates=2", "ddim:eta=1"),
    "demon": ("reward=oracle,candidates=2", "ddim:eta=1"),
    "uni-code": ("reward=preference,streams=2,block=1", "ddim:eta=1"),
    "best-of": ("reward=oracle,of=2,prune=1:1", ""),
    "ttsnap": ("reward=oracle,early=noisy_reward:early,of=3,keep=1:0.4", ""),
    "golden-noise": ("network=NPNET", ""),
    "evolutionary": ("reward=oracle,population=2,elites=1,generations=1", ""),
    "reno": ("reward=preference,iterations=1", ""),
    "carinox": ("reward=preference,starts=2,kept=1,iterations=1,apart=false", ""),
    "find": ("reward=oracle,iterations=1,pairs=1", ""),
    "over-paths": ("reward=oracle,paths=2,copies=1", ""),
    "dts": ("reward=oracle,rollouts=2", "ddim:eta=1"),
    "dts-star": ("reward=oracle,rollouts=2", "ddim:eta=1"),
    "zero-order": ("reward=oracle,rounds=1,neighbours=1", ""),
}


def run(control: str | list[str] | None, solver: str = "", **settings: Any) -> Any:
    given: dict[str, Any] = {"backbone": "mini-unet", "policy": "none", "steps": 3, "n": 1} | settings
    return promptloop.generate(QUERY, control=control, solver=solver, **given)


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    return {solver: run(None, solver).images for solver in ("", "ddim:eta=1")}


@pytest.mark.parametrize("name", [n for n, m in methods.METHODS.items() if m.given != methods.OWN])
def test_every_method_steers(
    name: str, plain: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails for a method of the table that no run can be given, that changes nothing (what chooses may keep
    the first), or whose cost is not counted.
    """
    (tmp_path / "noisy_reward.py").write_text(BRIGHT)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("noisy_reward", None)
    settings, solver = GIVEN[name]
    if name == "doob-matching":
        torch.manual_seed(0)
        LogH(promptloop.load("mini-unet").latent_shape).save(tmp_path / "h")
        settings += str(tmp_path / "h")
    if name == "golden-noise":
        shape = Shape(side=16, text=20 * 128, image=8, patch=2, width=8, depths=(1,), heads=(1,), window=4)
        net = NPNet(shape)
        net.alpha.data.fill_(1.0)
        save(net, tmp_path / "npnet")
    made = run(
        f"{name}:{settings.replace('NPNET', str(tmp_path / 'npnet'))}",
        solver,
        policy="promptloop.policies:Identity" if name == "prompt-guidance" else "none",
    )
    assert made.images.isfinite().all()
    chooses = name in ("best-of", "ttsnap", "prompt-guidance", "fk") or methods.is_driver(name)
    assert chooses or not torch.equal(made.images, plain[solver])
    cost = made.trace["cost"]
    assert cost["evaluations"] >= (3 if name == "golden-noise" else 4 if name == "cfg" else 6)
    assert (cost["rewards"] > 0) == ("reward=" in settings)


def test_identities_on_the_command_line(plain: dict[str, torch.Tensor]) -> None:
    """Bitwise the plain run: a LoRA of weight 0, one particle, one candidate, one noise, no round."""
    for spec in (
        f"rlg:tuned={TUNED},w=0",
        "best-of:reward=oracle,of=1",
        "ttsnap:reward=oracle,of=1,keep=1:1",
        "zero-order:reward=oracle,rounds=0",
    ):
        assert torch.equal(run(spec).images, plain[""]), spec
    for spec in ("fk:reward=oracle,particles=1", "svdd:reward=oracle,candidates=1"):
        assert torch.equal(run(spec, "ddim:eta=1").images, plain["ddim:eta=1"]), spec
    tuned = run(None, lora=f"{TUNED}/adapter_model.safetensors:1")
    assert torch.equal(run(f"rlg:tuned={TUNED},w=1").images, tuned.images)


def test_methods_compose_with_a_policy_and_replay(tmp_path: Path, command: Callable[..., Any]) -> None:
    """Policy, tuned weights, RLG and particles in one command; the trace makes the same pixels again."""
    out = str(tmp_path / "out")
    code, said, err = command(
        "generate", QUERY, "--backbone", "mini-unet", "--steps", "4", "-n", "2", "--solver", "ddim:eta=1",
        "--control", f"rlg:tuned={TUNED},w=1.6", "--control", "fk:reward=oracle,particles=2,every=2",
        "--compare", "--out", out,
    )  # fmt: skip
    assert code == 0, err
    trace = json.loads(Path(out, "trace.json").read_text())
    page = Path(out, "trace.html").read_text()
    assert "steered by rlg, fk" in page and "not steered" in page and "same noise" not in page
    assert trace["cost"]["rewards"] == 2 * 2 * 2 and trace["backbone"]["solver"] == "DDIM(eta=1.0)"
    code, said, err = command("replay", out)
    assert code == 0 and "every pixel" in said, err


def test_the_list_and_one_method(command: Callable[..., Any]) -> None:
    code, said, _ = command("methods")
    assert code == 0 and all(f"\n  {name} " in said for name in methods.METHODS)
    code, said, _ = command("methods", "fk")
    assert code == 0 and "particles = 4" in said
    code, _, err = command("methods", "dask")
    assert code == 2 and "did you mean 'das'?" in err and "Traceback" not in err


def test_what_a_run_cannot_be_steered_by_is_one_sentence(command: Callable[..., Any]) -> None:
    """Particles need a solver that draws; kept images must be one for each sample."""
    for given, said in (
        (["--backbone", "mini-unet", "--control", "fk:reward=oracle"], "--solver ddim:eta=1"),
        (["--control", "best-of:reward=oracle,of=2,kept=2"], "give kept=1"),
        (["--control", "das:reward=oracle"], "differentiable"),
    ):
        code, _, err = command(
            "generate", QUERY, "--policy", "none", "--steps", "3", *given, "--out", "nowhere-to-be"
        )
        assert code == 2 and said in err and "Traceback" not in err, err


def test_a_study_of_steering_goes_on_and_prints_its_table(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`promptloop reproduce dial --quick` on two of its rows: w = 0 moves nothing, w = 3 does; rows of other
    settings are refused. Fails if a row is measured again, or its distance is to another row's images.
    """
    from promptloop.recipes import compared

    rows = {key: arm for key, arm in compared.dial().items() if key in ("w0", "w3")}
    monkeypatch.setitem(compared.ARMS, "dial", lambda: rows)
    monkeypatch.setattr(compared, "QUICK", 1)
    code, said, err = command("reproduce", "dial", "--quick", "--out", str(tmp_path))
    assert code == 0, err
    first = {key: json.loads((tmp_path / "dial" / f"{key}.json").read_text()) for key in rows}
    assert first["w0"]["moved"] == 0 < first["w3"]["moved"]
    assert first["w0"]["cost"]["denoiser calls"] * 2 == first["w3"]["cost"]["denoiser calls"] == 80
    monkeypatch.setattr(compared, "measured", None)
    assert command("reproduce", "dial", "--quick", "--out", str(tmp_path))[1] == said
    monkeypatch.setattr(compared, "QUICK", 2)
    code, _, err = command("reproduce", "dial", "--quick", "--out", str(tmp_path))
    assert code == 2 and "other settings" in err


@pytest.mark.parametrize("study", ["steering", "grid", "dial"])
def test_the_tables_of_the_docs_come_from_the_committed_rows(study: str) -> None:
    """docs/methods/README.md holds what `reproduce` prints of docs/results/STUDY; fails if either changes."""
    from promptloop.recipes import compared

    docs = Path(__file__).parents[2] / "docs"
    files = {file.stem: file for file in (docs / "results" / study).glob("*.json")}
    arms = compared.ARMS[study]()
    assert set(files) == set(arms)
    rows = {key: json.loads(files[key].read_text()) for key in arms}
    for key, kept in rows.items():
        assert tuple(kept["settings"]["controls"]) == tuple(
            spec.replace(str(Path(TUNED).parent), "studies") for spec in arms[key].controls
        )
    assert compared.table(arms, rows) in (docs / "methods" / "README.md").read_text()


def test_the_arms_of_the_studies_can_be_read() -> None:
    """Every row of steering and grid is a job that could run; methods have four budgets and a pair."""
    from promptloop.recipes import compared, steering

    for arms in (compared.steered(), compared.grid()):
        for arm in arms.values():
            steering.check(arm.controls, arm.solver)
    keys = compared.steered()
    assert {f"fk-preference-{b}" for b in (2, 4, 8, 16)} | {"fk-oracle-4-policy"} <= set(keys)
    assert len(compared.grid()) == 12 and "das-oracle-2" not in keys

"""Training from the command line on tiny random models: it learns, resumes exactly, and refuses in one
sentence.
"""

import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import SMALL, learned, numbers, result, start, train, two, updates_done

from promptloop.parameters import LoRA, saving_memory, with_lora
from promptloop.policies.contract import Request
from promptloop.policies.mllm import Mllm


def killed_and_resumed(run: Path, steps: int, kills: int, models: list[str]) -> None:
    """A training of `steps` updates that gets SIGKILL `kills` times, at random moments of an update."""
    rng = random.Random(0)
    for _ in range(kills):
        begun = (run / "config.json").exists()
        how = ["--resume"] if begun else ["--steps", str(steps), *models, *SMALL]
        process, seen, deadline = start("mini", "--out", str(run), *how), updates_done(run), time.time() + 120
        enough = min(seen + 2, steps - 1)
        while process.poll() is None and time.time() < deadline and updates_done(run) < enough:
            time.sleep(0.02)
        time.sleep(rng.random() * an_update(run))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it had ended before it was killed: give more steps"
    assert updates_done(run) < steps, "it was done before the last kill: give more steps"
    code, _, err = train("mini", "--resume", "--out", str(run))
    assert code == 0, err


def an_update(run: Path) -> float:
    """The seconds of the last update: the same moment of it on a fast machine and on a slow one."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return sum(float(value) for name, value in last.items() if name.startswith("seconds/"))


@pytest.mark.slow
def test_killed_at_random_and_resumed_equals_uninterrupted(models: list[str], tmp_path: Path) -> None:
    """Five kills. Fails when the optimiser, a generator or the position in the data is left out.

    In update 1 the first draft is alone (--first-alone 1).
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, out, err = train("mini", "--steps", "21", "--out", str(whole), *models, *SMALL)
    assert code == 0, err
    assert "21 updates" in out and (whole / "README.md").is_file()
    assert (whole / "sheets" / "000021.png").is_file()
    for update, written in (("000001", 1), ("000021", 2)):
        told = json.loads((whole / "sheets" / f"{update}.json").read_text())
        assert {len(episode["drafts"]) for episode in told} == {written}
    killed_and_resumed(parts, 21, 5, models)
    a, b = result(whole), result(parts)
    assert a.keys() == b.keys() and all(bool((a[k] == b[k]).all()) for k in a)
    assert learned(a)
    assert numbers(whole) == numbers(parts)


REFUSED = [
    (["mino"], "did you mean 'mini'"),
    (["mini", "--grup", "4"], "did you mean 'group'"),
    (["mini", "--group", "1"], "group is 1"),
    (["mini", "--steps", "9", "--first-alone", "10"], "first_alone is 10;"),
    (["mini-dpo", "--batch", "9"], "do not divide"),
    (["mini-dpo", "--dpo-beta", "-1"], "dpo_beta is -1"),
    (["mini-dpo", "--average", "1.5"], "average is 1.5"),
    (["mini-dpo", "--reward", "none"], "no reward to judge"),
    (["mini", "--noise", "share"], "did you mean 'shared'"),
    (["mini", "--reward", "orcale"], "did you mean 'oracle'"),
    (["mini", "--reward", "none"], "no reward to train on"),
    (["mini", "--backbone", "mini-unett"], "did you mean 'mini-unet'"),
    (["mini", "--policy", "none"], "nothing to train"),
    (["mini", "--track", "tensorbord"], "did you mean 'tensorboard'"),
    (["mini", "--push-to-hub", "nobody"], "owner/name"),
    (["mini", "--lr", "fast"], "lr is 'fast'"),
    (["mini", "--refinements", "30"], "do not fit"),
    (["mini", "--train-weights", "all", "--policy-dtype", "bfloat16"], "lost in bfloat16"),
    (["mini", "--train-weights", "all", "--kl-weight", "0.1"], "no reference beside it"),
    (["mini", "--policy", "mini-policy", "--train-weights", "al"], "did you mean 'all'"),
    (["mini", "--policy", "mini-policy", "--train-weights", "all"], "is a LoRA"),
    (["mini", "--policy", "mini-policy", "--kl-weight", "0.1"], "has a LoRA already"),
    (["mini", "--kl-weight", "0.1", "--kl-to", "old"], "holds to nothing"),
    (["mini", "--reward", "oracle-strict"], "is the reward itself"),
    (["mini", "--temperature", "0"], "temperature is 0.0"),
    (["mini", "--guidance", "nan"], "guidance is nan"),
    (["mini", "--policy", "tiny_reward:brightness"], "is Python"),
    (["mini", "--reward", "tiny_reward:DIMMED"], "is a float"),
    (["mini", "--steps", "0"], "steps is 0"),
    (["mini", "--steps", "1000001"], "it must be at most 1000000"),
    (["mini", "--lr", "inf"], "lr is inf; it must be a finite number"),
    (["mini", "--max-grad-norm", "0"], "max_grad_norm is 0.0; it must be above 0"),
    (["mini", "--window", "0"], "give 2 numbers in one word, like 0,0.75"),
    (["mini", "--window", "0,2"], "in order, from 0 to 1: 0,0.75"),
    (["mini", "--refusal-cost", "nan"], "refusal_cost is nan"),
    (["mini", "--kl-weight", "nan"], "kl_weight is nan"),
    (["mini", "--seed", "-1"], "seed is -1"),
    (["mini", "--shard", "true"], "there is one"),
    (["mini", "--resume"], "holds no run"),
    (["mini", "steps"], "has no place here"),
    (["mini", "--steps"], "lacks its value"),
    (["mini", "--steps", "1", "--steps", "2"], "given twice"),
]


def test_nothing_moves_where_nothing_is_told(models: list[str], tmp_path: Path) -> None:
    """Every group's rewards are equal from update 3 on: in two processes, too, the optimiser rests.

    Fails when gradients of 0 are stepped on: momentum would move the weights.
    """
    sizes = ["tiny_reward:Tiring" if word == "tiny_reward:brightness" else word for word in SMALL]
    sizes[sizes.index("--sheet-every") + 1] = "0"  # it would call the reward once more, in one process
    two("--out", str(tmp_path / "run"), "--steps", "4", *models, *sizes)
    kept = [load_file(tmp_path / "run" / "checkpoints" / f"00000{k}" / "tensors.safetensors") for k in (2, 4)]
    weights = [{k: t for k, t in held.items() if k.startswith(("weight.", "optimizer."))} for held in kept]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert numbers(tmp_path / "run")[-1]["groups_dropped"] == 1


@pytest.mark.parametrize("way", ["lora", "lora sharded", "all sharded"])
def test_two_processes_train_as_one(models: list[str], tmp_path: Path, way: str) -> None:
    """Fails when gradients are averaged, tokens or the rewards' deviation taken in one process only, or a
    group's seeds shift; and for FSDP2 when a process that has no picture to read keeps the others waiting.
    """
    one, both = tmp_path / "one", tmp_path / "two"
    sizes = ["--denoiser-dtype", "float32", *models, *SMALL]
    sizes += ["--train-weights", "all", "--lr", "1e-4"] if "all" in way else []
    sizes += ["--scale", "batch"] if way == "lora" else []
    steps = "2" if "all" in way else "3"  # rounding soon draws another token where all weights move
    code, _, err = train("mini", "--out", str(one), "--steps", steps, *sizes)
    assert code == 0, err
    two("--out", str(both), "--steps", steps, "--shard", str("sharded" in way), *sizes)
    a, b = result(one), result(both)
    assert a.keys() == b.keys()
    start_of = dict.fromkeys(a, 0.0)  # how far they went is compared: of all weights' own size that is little
    if "all" in way:
        start_of = load_file(Path(models[3]) / "model.safetensors")
    flat = [torch.cat([(policy[k] - start_of[k]).flatten() for k in sorted(a)]) for policy in (a, b)]
    assert float((flat[0] - flat[1]).norm() / flat[0].norm()) < 1e-3
    assert "all" in way or learned(a)
    for first, second in zip(numbers(one), numbers(both), strict=True):
        assert first == pytest.approx(second, abs=2e-4, rel=2e-3)
    if way == "lora sharded":  # resumed in the middle
        shutil.rmtree(both / "policy")
        shutil.rmtree(both / "checkpoints" / "000003")
        two("--out", str(both), "--resume")
        again = result(both)
        assert all(torch.equal(again[k], b[k]) for k in b)


def test_all_weights_half_precision_and_recomputed_activations(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Checkpointing changes nothing but memory; all weights move and are used again; bf16 keeps a float LoRA.

    Fails if checkpointing is on while drafts are drawn, if the folder lacks the processor, or if the LoRA
    is rounded to bfloat16.
    """
    policy = Mllm.load(models[3])
    with_lora(policy, LoRA(), seed=0)
    calls = Counter[str]()
    block = next(m for m in policy.network.modules() if type(m).__name__ == "LlamaDecoderLayer")
    block.self_attn.register_forward_pre_hook(lambda *_: calls.update(["forward"]))
    draft = policy.silence(Request("a", "a"))
    for expected in (1, 2):
        policy.log_prob([draft])[0].sum().backward()
        assert calls.pop("forward") == expected  # the second time recomputed in the backward pass
        saving_memory(policy)
    ran = {}
    ways = {
        "lora": [],
        "again": ["--gradient-checkpointing", "true"],
        "all": ["--train-weights", "all", "--lr", "1e-4"],
        "half": ["--policy-dtype", "bfloat16"],
    }
    for name, extra in ways.items():
        ran[name] = tmp_path / name
        sizes = ["--steps", "2", *models, *SMALL, *extra]
        code, _, err = command("train", "mini", *sizes, "--out", str(ran[name]))
        assert code == 0, err
    lora, again = result(ran["lora"]), result(ran["again"])
    assert learned(lora)
    assert all(torch.allclose(lora[name], again[name], atol=1e-5) for name in lora)
    for name, towards in (("lora", "reference"), ("all", "old")):  # without a LoRA there is no reference
        assert json.loads((ran[name] / "config.json").read_text())["in_force"]["kl_to"] == towards
        assert f"| kl_to | {towards} |" in (ran[name] / "README.md").read_text()
    half = result(ran["half"])
    assert learned(half) and all(t.dtype == torch.float32 for t in half.values())
    before, after = (load_file(Path(f) / "model.safetensors") for f in (models[3], ran["all"] / "policy"))
    assert before.keys() == after.keys() and sum(bool((before[k] != after[k]).any()) for k in before) > 10
    small = ["-n", "1", "--steps", "4", "--refinements", "2", "--out", str(tmp_path / "out")]
    policy = ["--policy", str(ran["all"]), "--backbone", models[1]]
    code, out, err = command("generate", "a star", *policy, *small)
    assert code == 0 and "1 images" in out, err


@pytest.mark.parametrize(("arguments", "wanted"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_it_refuses(
    arguments: list[str], wanted: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    """One sentence and exit code 2, before anything is loaded or written."""
    run = tmp_path / "run"
    code, _, err = command("train", *arguments, "--out", str(run))
    assert code == 2 and wanted in err and "Traceback" not in err
    assert not run.exists()


def test_a_broken_reward_stops_it_and_a_mended_one_goes_on(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Fails when a reward that is not a number is replaced, or the failed start blocks the folder."""
    run, sizes = tmp_path / "run", ["--steps", "1", *models, *SMALL]
    broken = ["tiny_reward:broken" if word == "tiny_reward:brightness" else word for word in sizes]
    code, _, err = command("train", "mini", *broken, "--out", str(run))
    assert code == 2 and "is nan; it is not replaced by 0" in err
    code, out, err = command("train", "mini", *sizes, "--out", str(run))
    assert code == 0 and "1 updates" in out, err
    code, _, err = command("train", "mini", *sizes, "--out", str(run))
    assert code == 2 and "--resume" in err
    policy = ["--policy", str(run), "--backbone", models[1]]
    small = ["-n", "1", "--steps", "4", "--refinements", "2", "--out", str(tmp_path / "out")]
    code, out, err = command("generate", "a star", *policy, *small)
    assert code == 0 and "1 images" in out, err


def test_metrics_go_to_tensorboard_and_a_run_that_has_not_ended_is_told(
    models: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Fails when the tracker is dropped in silence, or a run's folder without a policy leads to a library."""
    run = tmp_path / "run"
    code, _, err = command("train", "mini", "--track", "tensorboard", "--steps", "2", *models, *SMALL,
                           "--base-every", "1", "--out", str(run))  # fmt: skip
    assert code == 0, err
    assert list((run / "tracking").rglob("events.out.*"))
    assert all("base" in line and "headroom" not in line for line in numbers(run))
    first, second = (line["kl"] for line in numbers(run))
    assert first == 0 < second  # told though it weighs nothing
    assert all(0 <= line["gap"] < 1e-4 for line in numbers(run))
    shutil.rmtree(run / "policy")
    small = ["-n", "1", "--steps", "4", "--refinements", "2", "--out", str(tmp_path / "out")]
    code, _, err = command("generate", "a star", "--policy", str(run), "--backbone", models[1], *small)
    assert code == 2 and "has not ended" in err and "--resume" in err
    newest = str(run / "checkpoints" / "000002")
    code, _, err = command("generate", "a star", "--policy", newest, "--backbone", models[1], *small)
    assert code == 0, err

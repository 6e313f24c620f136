"""Drafts drawn by a server that speaks vLLM's protocol (tests/stand_in_vllm.py), against the policy's own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_vlm
import torch
from stand_in_vllm import KNOWN, Engine, stand_in
from tiny_server import say, serving, status

from promptloop.objectives.mismatch import Mismatch, gaps
from promptloop.objectives.policy_gradient import Surrogate, policy_gradient
from promptloop.parameters import LoRA, with_lora
from promptloop.policies import Draft, Mllm, Request
from promptloop.policies.contract import LIKELIEST
from promptloop.policies.served import Served, signed, vllm

SEEDS = [3, 2**63 + 5, LIKELIEST, 7]
FAMILIES = ["idefics3", "qwen2_5_vl", "llava"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    return {family: tiny_vlm.build(family, root / family) for family in FAMILIES}


@pytest.fixture
def policy(folders: dict[str, Path]) -> Mllm:
    return moved(with_lora(Mllm.load(folders["idefics3"], max_new_tokens=8), LoRA(4, 8), seed=0))


def moved(policy: Mllm, by: float = 0.3) -> Mllm:
    """The policy after a step of training: its LoRA does something."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in policy.network.named_parameters():
            if "lora_B" in name:
                p.add_(by * torch.randn(p.shape, generator=rng))
    return policy


def requests() -> list[Request]:
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    spelled = Request("a <image> dog", "a dog<|im_end|>")
    return [spelled, Request("a cat", "one cat", image, 0.5), Request("a cat", "a cat", image, 0.2), spelled]


@pytest.fixture
def server(policy: Mllm, folders: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Served, Engine]]:
    with stand_in(folders["idefics3"]) as (url, engine):
        yield Served(policy, vllm(url, retries=1, backoff=0.01), tmp_path / "loras"), engine


def log_prob_of(policy: Mllm, drafts: list[Draft]) -> list[torch.Tensor]:
    with torch.no_grad():
        return gaps(drafts, policy.log_prob(drafts)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exact_server_draws_the_policys_own_drafts(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Fails without top_k in the request (the folder's generation_config says 5), without logit_bias, or when
    the image is not the one the policy would see.
    """
    policy = Mllm.load(folders[family], max_new_tokens=8, temperature=0.8)
    policy = moved(with_lora(policy, LoRA(4, 8), seed=0))
    with stand_in(folders[family]) as (url, _):
        served = Served(policy, vllm(url), tmp_path)
        served.follow()
        theirs, ours = served.write(requests(), SEEDS), policy.write(requests(), SEEDS)
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a.tokens, b.tokens) and (a.text, a.answer, a.kept) == (b.text, b.answer, b.kept)
    drawn = [(a, b) for a, b, seed in zip(theirs, ours, SEEDS, strict=True) if seed != LIKELIEST]
    assert all(torch.allclose(a.log_probs, b.log_probs, atol=1e-4) for a, b in drawn)


def test_the_server_follows_the_policy(server: tuple[Served, Engine], policy: Mllm) -> None:
    """Fails when a LoRA is loaded once only, or old ones stay on the server or on the disk."""
    served, engine = server
    with pytest.raises(ValueError, match=r"call follow\(\) first"):
        served.write(requests(), SEEDS)
    for _ in range(2):
        served.follow()
        drafts = served.write(requests(), SEEDS)
        drawn = [d for d, seed in zip(drafts, SEEDS, strict=True) if seed != LIKELIEST]
        assert max(float(gap.abs().max()) for gap in log_prob_of(policy, drawn)) < 1e-4
        assert len(engine.loaded) == 1 and [str(p) for p in served.folder.iterdir()] == [
            *engine.loaded.values()
        ]
        moved(policy, 0.6)
    assert max(float(gap.abs().max()) for gap in log_prob_of(policy, drafts)) > 0.05
    served.close()
    assert not engine.loaded and not list(served.folder.iterdir())


def test_a_request_says_the_whole_distribution(server: tuple[Served, Engine], policy: Mllm) -> None:
    served, engine = server
    served.follow()
    served.write(requests()[:1], [LIKELIEST])
    body = engine.history[-1][1]
    assert set(body) <= KNOWN and body["temperature"] == 0 and "seed" not in body
    assert {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}.items() <= body.items()
    special = {i for i, t in policy.processor.tokenizer.added_tokens_decoder.items() if t.special}
    ends = set(body["stop_token_ids"])
    assert ends and {int(i) for i in body["logit_bias"]} == special - ends
    assert [signed(seed) for seed in (5, 2**63, 2**64 - 1)] == [5, -(2**63), -1]
    json.dumps(body)


def test_another_engine_is_measured_corrected_and_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """A server whose logits are 3% larger. Fails when the gap's sign is turned, or padding is counted."""
    policy = moved(with_lora(Mllm.load(folders["idefics3"], max_new_tokens=8), LoRA(4, 8), seed=0))
    with stand_in(folders["idefics3"], scale=1.03) as (url, _):
        served = Served(policy, vllm(url), tmp_path)
        served.follow()
        drafts = served.write([requests()[1]] * 30, range(30))
    rows = log_prob_of(policy, drafts)
    # drawn from q, E[log p - log q] = -KL[q || p]: below 0
    assert float(torch.cat(rows).mean()) < 0
    told = Mismatch().measured(rows)
    every = torch.cat(rows)
    assert 0.003 < told["mismatch/mean"] < told["mismatch/max"] == float(every.abs().max())
    assert abs(told["mismatch/mean"] - float(every.abs().mean())) < 1e-6
    assert 0.9 < told["mismatch/effective"] < 1
    tight = Mismatch(cap=1.0).measured(rows)["mismatch/truncated"]
    assert tight == float((every > 0).double().mean()) > 0 == told["mismatch/truncated"]
    with pytest.raises(ValueError, match="off the policy's by 0.*processed_logprobs"):
        Mismatch(limit=0.003).measured(rows)


def test_log_probs_before_temperature_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """vLLM's default mode tells the log-probs of the logits as they are: not what drafts are drawn from."""
    policy = Mllm.load(folders["idefics3"], max_new_tokens=8, temperature=0.5)
    policy = with_lora(policy, LoRA(4, 8), seed=0)
    with stand_in(folders["idefics3"], raw=True) as (url, _):
        served = Served(policy, vllm(url), tmp_path)
        served.follow()
        rows = log_prob_of(policy, served.write(requests()[:2], [1, 2]))
    with pytest.raises(ValueError, match="nothing is trained on them"):
        Mismatch().measured(rows)


def test_corrected_drafts_of_another_engine_give_the_policys_own_gradient() -> None:
    """Exactly, over tokens in the proportion q = (4, 2, 1, 1) / 8, under a cap that cuts nothing.

    Fails without the correction, with p and q exchanged, or when the weights are differentiated.
    """
    advantages = torch.tensor([1.0, -2.0, 3.0, 0.5])
    tokens = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    logits = torch.tensor([0.3, -0.5, 0.9, 0.1], requires_grad=True)
    q = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    p = logits.log_softmax(-1)

    def gradient(cap: float) -> torch.Tensor:
        old = p[tokens, None].detach()
        correction = Mismatch(cap=cap).weights(p[tokens, None] - q[tokens, None])
        loss, _ = policy_gradient(p[tokens, None], advantages[tokens], torch.ones(8, 1, dtype=torch.bool),
                                  Surrogate(), old=old, correction=correction)  # fmt: skip
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    (own,) = torch.autograd.grad(-(p.exp() * advantages).sum(), logits, retain_graph=True)
    assert torch.allclose(gradient(10.0), own, atol=1e-6)
    assert not torch.allclose(gradient(1.0), own, atol=1e-2)


def test_what_a_server_gets_wrong_is_said(server: tuple[Served, Engine], policy: Mllm) -> None:
    served, engine = server
    served.follow()
    whole = Engine.read
    engine.read = lambda body: whole(engine, {**body, "messages": body["messages"][1:]})  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="reads the prompt otherwise: '.*' where the policy reads '.*'"):
        served.write(requests()[:1], [0])
    engine.failures = [503]
    assert served.write(requests()[:1], [0])  # asked again
    engine.failures = [400]
    with pytest.raises(ValueError, match="400 .*told to fail"):
        served.write(requests()[:1], [0])
    engine.loras = False
    with pytest.raises(ValueError, match="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        served.follow()
    said = Engine.said
    wrongs = {
        "without token ids": lambda *a: {"choices": [{"message": {"content": "a dog"}}]},
        "told never to draw": lambda body, inputs, ids, p: said(engine, body, inputs, [1, *ids[1:]], p),
        "no drawn token can": lambda body, inputs, ids, p: said(engine, body, inputs, ids, [-9999.0, *p[1:]]),
        "tokens and": lambda body, inputs, ids, p: {
            "choices": [{"token_ids": ids, "logprobs": {"content": []}}]
        },
    }
    for words, wrong in wrongs.items():
        engine.said = wrong  # type: ignore[method-assign]
        with pytest.raises(ValueError, match=words):
            served.write(requests()[:1], [0])


def test_a_redirect_does_not_take_the_key_elsewhere(
    policy: Mllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key goes to the address that was given. Fails with a client that follows redirects, or if
    key_variable is not vLLM's.
    """
    monkeypatch.setenv("VLLM_API_KEY", "secret-1")
    with serving(say("never asked")) as elsewhere:
        with serving(status(302, Location=f"{elsewhere.url}/load_lora_adapter")) as server:
            with pytest.raises(ValueError, match="status 302 .*give the address that it redirects to"):
                Served(policy, vllm(server.url), tmp_path).follow()
            assert [row[1].get("Authorization") for row in server.seen] == ["Bearer secret-1"]
        assert not elsewhere.seen


def test_bad_settings_are_errors(policy: Mllm, folders: dict[str, Path], tmp_path: Path) -> None:
    for url in ("127.0.0.1:8000/v1", "http://127.0.0.1:8000", "ftp://x/v1"):
        with pytest.raises(ValueError, match="give one like http"):
            vllm(url)
    with pytest.raises(ValueError, match="retries is -1"):
        vllm("http://127.0.0.1:8000/v1", retries=-1)
    with pytest.raises(ValueError, match="concurrency is 0"):
        Served(policy, vllm("http://127.0.0.1:1/v1"), tmp_path, concurrency=0)
    with pytest.raises(ValueError, match="this one has none"):
        Served(Mllm.load(folders["idefics3"]), vllm("http://127.0.0.1:1/v1"), tmp_path)
    with pytest.raises(ConnectionError, match="no usable answer in 1 try"):
        Served(policy, vllm("http://127.0.0.1:1/v1", retries=0), tmp_path).follow()
    with pytest.raises(ValueError, match="mismatch_cap is 0.5"):
        Mismatch(cap=0.5)
    with pytest.raises(ValueError, match="mismatch_limit is 0"):
        Mismatch(limit=0)

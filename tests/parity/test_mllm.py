"""A vision-language model as the policy, on five real families at tiny size, against transformers itself."""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import tiny_vlm
import torch
from safetensors.torch import load_file
from torch import Tensor

from promptloop.controls.prompt import PromptLoop
from promptloop.denoisers import from_pipeline
from promptloop.policies import Draft, Mllm, Request
from promptloop.policies.contract import LIKELIEST
from promptloop.policies.decoding import draw
from promptloop.policies.message import messages
from promptloop.sample import sample

LIMIT = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    return {family: tiny_vlm.build(family, root / family) for family in tiny_vlm.FAMILIES}


@pytest.fixture(params=list(tiny_vlm.FAMILIES))
def policy(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Mllm:
    return Mllm.load(folders[request.param], max_new_tokens=LIMIT)


@pytest.fixture
def llava(folders: dict[str, Path]) -> Mllm:
    return Mllm.load(folders["llava"], max_new_tokens=LIMIT)


def picture(seed: int) -> Tensor:
    return torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(seed))


def requests() -> list[Request]:
    """Without and with an image, short and long, two pairs that are equal."""
    dog, long = Request("a dog", "a dog"), "two small red circles left of a large blue striped star"
    seen = Request(long, "a star", picture(1), 0.4)
    return [
        dog,
        seen,
        Request("a cat", "one cat", picture(2), 0.4),
        dog,
        Request(long, long, None, 0.6),
        seen,
    ]


def write(policy: Mllm) -> list[Draft]:
    return policy.write(requests(), range(6))


@contextmanager
def biased(policy: Mllm, ids: list[int], by: float) -> Iterator[None]:
    """The network with `by` added to the logits of `ids`."""

    def add(_: Any, __: Any, logits: Tensor) -> Tensor:
        bias = torch.zeros(logits.shape[-1])
        bias[ids] = by
        return logits + bias

    hook = policy.network.get_output_embeddings().register_forward_hook(add)
    yield
    hook.remove()


def special(policy: Mllm) -> list[int]:
    words = policy.processor.tokenizer
    return [i for i, token in words.added_tokens_decoder.items() if token.special and i != words.eos_token_id]


def close(a: list[Draft], b: list[Draft], tolerance: float) -> bool:
    return all(torch.equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True)) and all(
        torch.allclose(x.log_probs, y.log_probs, atol=tolerance) for x, y in zip(a, b, strict=True)
    )


def test_greedy_decoding_is_transformers_own(policy: Mllm) -> None:
    """Fails if positions ignore the left padding, or pixels are attached to the wrong rows."""
    greedy = replace(policy, temperature=0.0)
    words, network = policy.processor.tokenizer, policy.network
    rows = network.get_output_embeddings().weight.shape[0]
    for request, draft in zip(requests(), write(greedy), strict=True):
        text = policy.processor.apply_chat_template(messages(request), add_generation_prompt=True)
        image = None
        if request.estimate is not None:
            image = [(request.estimate * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()]
        inputs = policy.processor(text=[text], images=image, return_tensors="pt")
        options = {"do_sample": False, "max_new_tokens": LIMIT, "top_k": None, "temperature": None}
        out = network.generate(
            **inputs, **options, suppress_tokens=[*special(policy), *range(len(words), rows)]
        )
        assert torch.equal(out[0, inputs["input_ids"].shape[1] :], draft.tokens)


def test_recomputed_log_probs_are_the_recorded_ones(policy: Mllm) -> None:
    """Fails if special tokens are masked at generation only, or completions are shifted by one."""
    with biased(policy, [policy.processor.tokenizer.eos_token_id], 3.5):  # drafts of different lengths
        drafts = write(replace(policy, temperature=0.7))
        log_probs, mask = replace(policy, temperature=0.7).log_prob(drafts)
    lengths = [len(draft.tokens) for draft in drafts]
    assert len(set(lengths)) > 2 and mask.sum(1).tolist() == lengths
    for row, draft in zip(log_probs, drafts, strict=True):
        assert torch.allclose(row[: len(draft.tokens)], draft.log_probs, atol=1e-4)
        assert bool((row[len(draft.tokens) :] == 0).all())
    log_probs.sum().backward()
    grads = [p.grad for name, p in policy.network.named_parameters() if "vision" in name or "visual" in name]
    assert any(grad is not None and float(grad.abs().max()) > 0 for grad in grads)


def test_a_row_depends_on_its_own_request_and_seed(policy: Mllm) -> None:
    """Fails if rows share a generator, or padding reaches the logits."""
    alone = [policy.write([r], [i])[0] for i, r in enumerate(requests())]
    assert close(write(policy), alone, 1e-5)
    one, two = policy.write([requests()[1]] * 2, [1, 2])
    assert not torch.equal(one.tokens, two.tokens)


def test_the_likeliest_answer_among_drawn_ones_is_the_greedy_one(policy: Mllm) -> None:
    """Fails if a batch is greedy as a whole or not at all."""
    mixed = policy.write(requests(), [0, LIKELIEST, 2, LIKELIEST, 4, LIKELIEST])
    greedy, drawn = write(replace(policy, temperature=0.0)), write(policy)
    for k, draft in enumerate(mixed):
        assert torch.equal(draft.tokens, (greedy if k % 2 else drawn)[k].tokens)
    assert not torch.equal(greedy[1].tokens, drawn[1].tokens)


def test_sharing_what_requests_have_in_common_changes_nothing(policy: Mllm) -> None:
    """Fails if the rest of a prompt is given positions that start at 0, or the cache is expanded wrongly."""
    assert close(write(policy), write(replace(policy, reuse=False)), 1e-5)


def test_what_requests_share_is_computed_once(policy: Mllm) -> None:
    shapes: list[tuple[int, ...]] = []
    watch = policy.network.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    policy.write([requests()[0]] * 5, range(5))
    rows, whole = shapes[0]
    assert rows == 1 and shapes[1] == (5, 1)
    shapes.clear()
    policy.write([requests()[0], Request("a cat", "a dog")], [1, 2])
    watch.remove()
    (one, prefix), (two, rest) = shapes[:2]
    assert (one, two) == (1, 2) and prefix > rest and prefix + rest == whole


def test_special_tokens_are_never_drawn(policy: Mllm) -> None:
    """An image token in an answer would break the next forward; fails if only all_special_ids are masked."""
    forbidden = special(policy)
    with biased(policy, forbidden, 40.0):
        drafts = write(policy)
        log_probs, mask = policy.log_prob(drafts)
    tokens = torch.cat([draft.tokens for draft in drafts])
    assert len(forbidden) >= 2 and not bool(torch.isin(tokens, torch.tensor(forbidden)).any())
    assert int(tokens.max()) < len(policy.processor.tokenizer)
    assert torch.allclose(log_probs[mask], torch.cat([d.log_probs for d in drafts]), atol=1e-4)


def test_control_tokens_spelled_in_a_request_are_text(policy: Mllm) -> None:
    """Fails if the user's text reaches the processor as it is: image tokens without an image."""
    spelled = "a dog".join(policy.processor.tokenizer.convert_ids_to_tokens(special(policy)))
    nested = "<im<image>age> <|im_<|im_end|>start|>"
    for estimate in (None, picture(1)):
        request = Request(spelled + nested, nested, estimate, 0.5)
        assert policy.write([request], [0])[0].request is request


def test_drafts_are_drawn_from_the_whole_distribution(llava: Mllm) -> None:
    """The folder asks for top_k=5 and temperature 0.3; fails if either reaches the draw."""
    one = replace(llava, max_new_tokens=1)
    drafts = one.write([requests()[0]] * 4000, range(4000))
    drawn = torch.stack([draft.tokens[0] for draft in drafts])
    known = {int(d.tokens[0]): float(d.log_probs[0].exp()) for d in drafts}
    assert len(known) > 30
    for token, p in known.items():
        share = float((drawn == token).float().mean())
        assert abs(share - p) < 5 * (p * (1 - p) / 4000) ** 0.5 + 1e-3


def test_draw_inverts_the_distribution_and_skips_what_has_no_mass() -> None:
    """Fails with right=False (u = 0 draws a token of probability 0) or with u beyond the rounded total."""
    log_probs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]).log()
    u = torch.tensor([0.0, 0.2499, 0.2501, 0.5, 1 - 2**-24])  # beside the border: exp rounds
    assert draw(log_probs.expand(5, 5), u).tolist() == [1, 1, 3, 3, 3]


def test_an_answer_ends_by_itself_or_is_refused(llava: Mllm) -> None:
    end = llava.processor.tokenizer.eos_token_id
    with biased(llava, [end], 60.0):
        draft = llava.write([requests()[1]], [0])[0]
    assert draft.tokens.tolist() == [end] and (draft.text, draft.kept) == ("a star", "empty")
    with biased(llava, [end], -60.0):
        draft = llava.write([requests()[1]], [0])[0]
    assert len(draft.tokens) == LIMIT and (draft.text, draft.kept) == ("a star", "overlong")
    assert draft.answer  # on record, though not used


def test_gradients_flow_through_the_shared_instruction(llava: Mllm) -> None:
    """Fails when the prefix's keys and values are cut from the graph, or counted once instead of per row."""
    policy = replace(llava, network=copy.deepcopy(llava.network).requires_grad_(True))
    drafts = write(policy)
    gradients = []
    for reuse in (True, False):
        policy.network.zero_grad()
        replace(policy, reuse=reuse).log_prob(drafts)[0].sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in policy.network.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = float(gradients[1][name].abs().max()) + 1e-3
        assert float((gradient - gradients[1][name]).abs().max()) < 1e-3 * scale, name


def test_lora_loads_and_only_it_is_trained(llava: Mllm, folders: dict[str, Path], tmp_path: Path) -> None:
    settings = peft.LoraConfig(target_modules=r".*language_model.*(q|v)_proj", init_lora_weights=False)
    torch.manual_seed(0)
    peft.get_peft_model(llava.network, settings).save_pretrained(tmp_path)
    tuned = Mllm.load(folders["llava"], lora=tmp_path, max_new_tokens=LIMIT)
    tuned.save(tmp_path / "saved")
    assert Mllm.load(folders["llava"], lora=tmp_path / "saved").max_new_tokens == LIMIT
    plain = Mllm.load(folders["llava"], max_new_tokens=LIMIT)
    drafts = write(tuned)
    assert not close(drafts, write(plain), 1e-3) and close(drafts, write(replace(tuned, reuse=False)), 1e-5)
    log_probs, mask = tuned.log_prob(drafts)
    assert torch.allclose(log_probs[mask], torch.cat([d.log_probs for d in drafts]), atol=1e-4)
    log_probs.sum().backward()
    trained = {
        n for n, p in tuned.network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
    }
    assert trained and all("lora" in name for name in trained)
    with tuned.network.disable_adapter():
        assert close(write(tuned), write(plain), 1e-5)


def test_nothing_is_unpickled(llava: Mllm, folders: dict[str, Path], tmp_path: Path) -> None:
    """Fails if a folder's .bin is read where it has no safetensors."""
    whole, lora = tmp_path / "whole", tmp_path / "lora"
    shutil.copytree(folders["llava"], whole)
    (whole / "model.safetensors").unlink()
    torch.save(llava.network.state_dict(), whole / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        Mllm.load(whole)
    settings = peft.LoraConfig(target_modules=r".*language_model.*q_proj")
    peft.get_peft_model(copy.deepcopy(llava.network), settings).save_pretrained(lora)
    torch.save(load_file(lora / "adapter_model.safetensors"), lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no adapter_model.safetensors"):
        Mllm.load(folders["llava"], lora=lora)


def test_bad_settings_are_errors(llava: Mllm) -> None:
    with pytest.raises(ValueError, match="temperature is -1"):
        replace(llava, temperature=-1.0)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        replace(llava, max_new_tokens=0)
    with pytest.raises(ValueError, match="2 requests but 1 seeds"):
        llava.write(requests()[:2], [0])


def test_the_closed_loop_on_a_pipeline(llava: Mllm) -> None:
    """Fails if the policy's seeds or images depend on the batch."""
    denoiser = from_pipeline(tiny.sd())
    policy = replace(llava, image_size=32)
    with biased(policy, [policy.processor.tokenizer.eos_token_id], 6.0):
        options = {"seeds": [3, 4, 5], "steps": 6, "controls": [PromptLoop(policy, 3)]}
        whole = sample(denoiser, ["a dog", "a dog", "a cat"], **options)
        split = sample(denoiser, ["a dog", "a dog", "a cat"], max_batch=2, **options)
    drafts = [draft for row in whole.state.memory["drafts"] for draft in row]
    assert len(drafts) == 9
    assert [d.request.estimate is None for d in drafts] == [True, False, False] * 3
    assert drafts[1].request.estimate.shape == (3, 32, 32)
    assert [d.text for d in drafts] == [d.text for row in split.state.memory["drafts"] for d in row]
    assert torch.allclose(whole.images, split.images, atol=1e-5)

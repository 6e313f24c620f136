"""The contract between loop and policy, the message, and the policies without weights."""

import pytest
import torch

from promptloop.policies import Draft, First, Identity, Policy, Request, Table, Template
from promptloop.policies.contract import LIKELIEST
from promptloop.policies.message import KEEP, SYSTEM, messages, read
from promptloop.policies.shown import Blind, Shuffled, Sometimes

ASKED = Request("two dogs", "two dogs on grass", progress=0.354)


def text(request: Request) -> str:
    return messages(request)[1]["content"][-1]["text"]


def test_the_message_says_what_is_wanted_what_is_in_force_and_how_far_it_is() -> None:
    assert messages(ASKED)[0] == {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
    assert text(ASKED) == "Wanted: two dogs\nPrompt now: two dogs on grass\nDone: 35%\nNew prompt:"


def test_the_image_comes_first_and_only_when_there_is_an_estimate() -> None:
    with_image = Request("a dog", "a dog", torch.zeros(3, 4, 4), 0.5)
    assert [part["type"] for part in messages(with_image)[1]["content"]] == ["image", "text"]
    assert [part["type"] for part in messages(ASKED)[1]["content"]] == ["text"]


def test_braces_in_a_query_are_text() -> None:
    assert "Wanted: {prompt} {0}\n" in text(Request("{prompt} {0}", "x"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("two brown dogs", ("two brown dogs", None)),
        ("  two brown dogs \n\nI changed the colour.", ("two brown dogs", None)),
        ('"two brown dogs"', ("two brown dogs", None)),
        ("it's two dogs'", ("it's two dogs'", None)),
        (KEEP, (ASKED.prompt, "same")),
        ("Keep.", (ASKED.prompt, "same")),
        ("keep two dogs", ("keep two dogs", None)),
        (ASKED.prompt, (ASKED.prompt, "same")),
        ("", (ASKED.prompt, "empty")),
        (" \n ", (ASKED.prompt, "empty")),
        ('""', (ASKED.prompt, "empty")),
        ("?!", (ASKED.prompt, "unparsable")),
        ("two \N{REPLACEMENT CHARACTER} dogs", (ASKED.prompt, "unparsable")),
        ("zwei Hunde, 两只狗", ("zwei Hunde, 两只狗", None)),
    ],
)
def test_an_answer_is_its_first_line_or_the_prompt_stays(
    answer: str, expected: tuple[str, str | None]
) -> None:
    assert read(ASKED, answer) == expected


def test_half_an_answer_is_never_used() -> None:
    assert read(ASKED, "two brown do", ended=False) == (ASKED.prompt, "overlong")


def test_requests_say_what_is_wrong_with_them() -> None:
    with pytest.raises(ValueError, match="progress is 1.5"):
        Request("a", "a", progress=1.5)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 4, 4\)"):
        Request("a", "a", torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("policy", "prompt", "kept"),
    [
        (Identity(), "two dogs on grass", "same"),
        (Table({"two dogs": "a pair of dogs"}), "a pair of dogs", None),
        (Table({"a cat": "one cat"}), "two dogs on grass", "same"),
        (Template("a photo of {query}"), "a photo of two dogs", None),
        (Template("{prompt}, sharp"), "two dogs on grass, sharp", None),
    ],
)
def test_policies_without_weights(policy: Policy, prompt: str, kept: str | None) -> None:
    drafts = policy.write([ASKED, ASKED], [0, 1])
    assert [(draft.text, draft.kept, draft.request) for draft in drafts] == [(prompt, kept, ASKED)] * 2
    log_probs, mask = policy.log_prob(drafts)
    assert log_probs.shape == mask.shape == (2, 0)


def test_a_template_may_only_name_query_and_prompt() -> None:
    with pytest.raises(ValueError, match="may only name"):
        Template("a photo of {subject}")


def test_refusing_a_draft_keeps_the_prompt_in_force_and_the_answer_on_record() -> None:
    draft = Draft(ASKED, "a long prompt", answer="a long prompt")
    refused = draft.refuse("overlong")
    assert (refused.text, refused.answer, refused.kept) == (ASKED.prompt, "a long prompt", "overlong")
    assert refused.refused and not draft.refused and not draft.refuse("same").refused


def test_shown_policies_change_the_picture_alone() -> None:
    """Fails when Shuffled gives a request its own estimate back, or Blind shows one."""
    pictures = [torch.full((3, 2, 2), value) for value in (0.1, 0.2, 0.3)]
    asked = [Request("q", "p", picture) for picture in pictures]

    def shown(policy: Policy) -> list[Request]:
        return [draft.request for draft in policy.write(asked, [0, 1, 2])]

    assert [r.estimate for r in shown(Blind(Identity()))] == [None] * 3
    assert [float(r.estimate[0, 0, 0]) for r in shown(Shuffled(Identity()))] == pytest.approx([0.3, 0.1, 0.2])
    assert Shuffled(Identity()).image_size is None
    with pytest.raises(ValueError, match="sample two or more"):
        Shuffled(Identity()).write(asked[:1], [0])


def test_an_image_is_dropped_now_and_then_but_not_from_the_likeliest_answer() -> None:
    """Fails if all seeds drop alike, or an answer that stands for inference is dropped from by chance."""
    asked = [Request("q", "q", torch.zeros(3, 4, 4), 0.5)] * 400
    shown = Sometimes(Identity(), 0.3).estimates(asked, range(400))
    assert 0.2 < sum(e is None for e in shown) / 400 < 0.4
    assert None not in Sometimes(Identity(), 0.3).estimates(asked, [LIKELIEST] * 400)
    assert set(Sometimes(Identity(), 1.0).estimates(asked, [LIKELIEST] * 400)) == {None}


def test_the_first_draft_is_one_policys_the_later_ones_anothers() -> None:
    """Fails if the drafts of a mixed batch change places, or an estimate decides instead of the progress."""
    both = First(Template("first {query}"), Template("later {query}"))
    picture = torch.zeros(3, 4, 4)
    asked = [
        Request("a", "a", picture, 0.5),
        Request("b", "b"),
        Request("c", "c", None, 0.2),
        Request("d", "d"),
    ]
    drafts = both.write(asked, [0, 1, 2, 3])
    assert [draft.text for draft in drafts] == ["later a", "first b", "later c", "first d"]
    assert both.log_prob(drafts)[1].shape == (4, 0) and both.write([], []) == []

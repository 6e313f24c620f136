"""The main job with a server as the policy: what it leaves, and what a replay makes of it without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import QUICK
from tiny_server import say, serving, status

import promptloop
from promptloop.recipes.early import checked
from promptloop.recipes.embedded import mini

KEY = "PROMPTLOOP_API_KEY"


def drawn(sent: dict[str, Any]) -> str:
    return f"a circle {sent['seed'] % 97}"


def test_a_served_run_is_replayed_from_its_drafts(
    backbone: str, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the server's address is not in the trace, the key is, or a replay asks the server again."""
    monkeypatch.setenv(KEY, "secret-1")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items() if name != "n"]
    with serving(say(drawn)) as server:
        name = f"{server.url}#owner/seer"
        models = [f"--backbone={backbone}", f"--policy={name}"]
        code, _, err = command(
            "generate", "a circle", "-n", "2", *models, "--out", str(tmp_path / "out"), *options
        )
        assert code == 0, err
        assert len(server.seen) == 6 and server.seen[0][1]["Authorization"] == "Bearer secret-1"
        shown = [isinstance(sent["messages"][1]["content"], list) for _, _, sent in server.seen]
        assert shown == [False] * 2 + [True] * 4
    text = (tmp_path / "out" / "trace.json").read_text()
    trace = json.loads(text)
    assert trace["job"]["policy"] == name and trace["policy"]["class"] == "Endpoint" and "secret" not in text
    prompts = [[draft["prompt"] for draft in sample["image"]["drafts"]] for sample in trace["samples"]]
    assert len({prompt for row in prompts for prompt in row}) == 6
    code, out, _ = command("replay", str(tmp_path / "out"))
    assert (
        code == 0 and "the same: 2 images" in out and "the server that wrote them was not asked again" in out
    )
    trace["samples"][1]["image"]["drafts"][2]["prompt"] = "a forged prompt"
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    code, _, err = command("replay", str(tmp_path))
    assert code == 1 and err.startswith("01.png differs (1 of 2")


def test_a_failing_server_ends_the_run_in_one_sentence(
    backbone: str, tmp_path: Path, command: Callable[..., Any]
) -> None:
    with serving(status(404, "unknown model")) as server:
        options = [f"--backbone={backbone}", f"--policy={server.url}#x", "--steps=2", "--refinements=1"]
        code, _, err = command("generate", "a circle", "--out", str(tmp_path / "out"), *options)
    assert code == 2 and f"{server.url} answered with status 404 (unknown model)" in err
    assert not (tmp_path / "out" / "trace.json").exists() and len(err.splitlines()) == 1


def test_a_servers_weights_are_not_trained() -> None:
    with pytest.raises(ValueError, match="a server's weights are not here"):
        checked(mini(policy="http://127.0.0.1:1/v1#x"))


def test_a_server_in_python(backbone: str) -> None:
    with serving(say(drawn)) as server:
        policy = promptloop.load_policy(f"{server.url}#x", temperature=1.0, image_size=8)
        made = promptloop.generate("a dot", backbone=backbone, policy=policy, **QUICK)
    assert [len(shot.picture.notes) for shot in made.shots] == [3, 3]
    assert {sent["temperature"] for _, _, sent in server.seen} == {1.0}

"""The commands about rewards. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptloop.options import Device
from promptloop.terminal import echo

app = typer.Typer()


@app.command(epilog="Example: promptloop rewards imagereward")
def rewards(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="One of them, in full; none lists all with their state.")
    ] = "",
) -> None:
    """List the rewards that have a name, and whether each is ready here."""
    from promptloop.recipes.reward_list import listed, told

    echo(told(name) if name else listed())


@app.command(
    epilog='Example: promptloop score a.png b.png --prompt "a red star" --reward imagereward:models/ir --json'
)
def score(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Files, or folders of them.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WHERE]",
            help="One of `promptloop rewards`, your own package.module:name, a server's http://HOST:PORT#NAME,"
            ' or what is made of these: "0.25*A + B", "rank(A + B) if C>=0.5 else -2"; may be repeated.',
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What was asked for: once for all images, or once for each."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The prompts: .txt (a line an image, in their order), .csv or .jsonl with image and prompt.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    device: Device = "auto",
    batch: Annotated[int, typer.Option(metavar="N", help="Images that are scored together.")] = 16,
) -> None:
    """Score images by rewards: a table, or JSON."""
    from promptloop.recipes import scoring

    rows = scoring.score(
        images or [], reward or [], prompts=prompt or [], listed=prompts, device=device, batch=batch
    )
    echo(scoring.as_json(rows) if as_json else scoring.table(rows))


@app.command(
    "serve-rewards", epilog="Example: promptloop serve-rewards imagereward:models/ir oracle --port 8100"
)
def serve_rewards(
    names: Annotated[list[str], typer.Argument(metavar="NAME[:WHERE]...", help="The rewards.")],
    host: Annotated[str, typer.Option(help="Whom to listen to; others than this machine need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8100,
    workers: Annotated[int, typer.Option(metavar="N", help="Processes of each reward.")] = 1,
    queue: Annotated[int, typer.Option(metavar="N", help="Images of each reward that may wait.")] = 256,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="A request may take in a process.")] = 120,
    loading_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="A process may take to load, downloads included.")
    ] = 1800,
    together: Annotated[
        int, typer.Option(metavar="N", help="Images of several requests scored together; 1: never.")
    ] = 1,
    cache: Annotated[int, typer.Option(metavar="N", help="Values kept by content; 0: none.")] = 0,
    largest: Annotated[float, typer.Option(metavar="MIB", help="A request may have.")] = 64,
    side: Annotated[int, typer.Option(metavar="PIXELS", help="The longer side of an image may have.")] = 4096,
    held: Annotated[float, typer.Option(metavar="MIB", help="All requests together may have.")] = 512,
    device: Device = "auto",
) -> None:
    """Serve rewards, each in processes of its own, over HTTP."""
    from promptloop.recipes.serve_rewards import serve
    from promptloop.rewards.crew import Terms
    from promptloop.rewards.service import Bounds
    from promptloop.rewards.wire import Largest

    bounds = Bounds(Largest(int(largest * 2**20), side), int(held * 2**20))
    terms = Terms(workers, queue, timeout, together, loading_timeout)
    serve(names, host=host, port=port, terms=terms, bounds=bounds, device=device, cache=cache, say=say)


def say(text: str) -> None:
    """At once, also into a file."""
    typer.echo(text, err=True)

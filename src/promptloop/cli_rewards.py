"""The commands about rewards. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

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

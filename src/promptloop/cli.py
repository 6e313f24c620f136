"""The command line. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from promptloop import __version__, cli_rewards
from promptloop.interrupt import Stopped
from promptloop.names import nearest
from promptloop.options import (
    Backbone,
    Compare,
    Count,
    Delay,
    Device,
    Dtype,
    Guidance,
    Lora,
    MaxBatch,
    Negative,
    Offload,
    OpenLoop,
    Out,
    Overwrite,
    Refinements,
    Seed,
    Size,
    Slicing,
    Solved,
    Steered,
    Steps,
    Temperature,
    Tiling,
    Told,
    Window,
    WritesPrompts,
)
from promptloop.terminal import echo, progress_bar, warn

UsageError: Any = typer.BadParameter.__mro__[1]  # what the parser raises for bad input
app = typer.Typer(
    name="promptloop",
    help="Prompts that are rewritten while the image forms.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command(
    epilog='Example: promptloop generate "an image with a jade disc and a golden block" --compare --out discs'
)
def generate(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What the picture should show.")],
    out: Out,
    backbone: Backbone = "mini-turbo",
    policy: WritesPrompts = "mini-policy",
    refinements: Refinements = None,
    window: Window = None,
    open_loop: OpenLoop = None,
    delay: Delay = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    negative: Negative = "",
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    n: Count = 4,
    compare: Compare = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    max_batch: MaxBatch = 16,
    size: Size = 0,
    lora: Lora = None,
    offload: Offload = "none",
    vae_tiling: Tiling = False,
    vae_slicing: Slicing = False,
    embedded_guidance: Told = None,
    control: Steered = None,
    solver: Solved = "",
    overwrite: Overwrite = False,
) -> None:
    """Make images of QUERY and show how each came about."""
    settings = dict(locals())
    with progress_bar() as tell:
        from promptloop.recipes.generate import generate as run

        made = run(**settings, progress=tell)
    from promptloop.recipes.report import summary

    echo(summary(made))


@app.command(epilog="Example: promptloop replay stars/trace.json")
def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="trace.json of an earlier run, or its folder.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Also write the images.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Run a trace again and compare every pixel; exit 1 if an image differs."""
    with progress_bar() as tell:
        from promptloop.recipes.replay import replay as run

        again = run(trace, out=out, overwrite=overwrite, progress=tell)
    for name, (then, now) in again.changed.items():
        echo(f"changed since: {name} was {then}, is {now}")
    if again.served:
        echo("the drafts are the trace's own: the server that wrote them was not asked again")
    count = sum(len(shot.files()) for shot in again.made.shots)
    if again.different:
        echo(f"{again.different[0]} differs ({len(again.different)} of {count} images do)", err=True)
    if again.retold:
        what = "other drafts or another score than this run gives"
        echo(f"the trace tells {what} of {again.retold[0]} (of {len(again.retold)} samples)", err=True)
    if not again.same:
        raise typer.Exit(1)
    echo(f"the same: {count} images, every pixel")


@app.command(epilog="Example: promptloop demo --out demo")
def demo(
    out: Out = Path("promptloop-demo"),
    backbone: Backbone = "mini-turbo",
    policy: WritesPrompts = "mini-policy",
    seed: Seed = 0,
    n: Count = 4,
    overwrite: Overwrite = False,
) -> None:
    """Refine six held-out queries of the embedded world and grade the images."""
    with progress_bar() as tell:
        from promptloop.recipes.demo import demo as run

        made = run(
            out=out, backbone=backbone, policy=policy, seed=seed, n=n, overwrite=overwrite, progress=tell
        )
    from promptloop.recipes.report import summary, table

    echo(table(made))
    echo(summary(made))


@app.command(
    epilog="Example: promptloop train mini --steps 20 --out runs/mini",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def train(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="What to train; none lists the recipes.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The run's folder.  [default: runs/RECIPE]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    last_good: Annotated[
        bool, typer.Option("--last-good", help="Pass over damaged checkpoints when resuming.")
    ] = False,
    asked: Annotated[
        bool, typer.Option("--help", help="Show this message, after a RECIPE its settings too, and exit.")
    ] = False,
) -> None:
    """Train a prompt policy, a backbone or a reward by a RECIPE; any of its settings as --setting value."""
    from promptloop.recipes.training import check, listed, run, settings_given, told

    if asked:
        settings = f"\n\n{told(recipe)}" if recipe else ""
        echo(context.get_help() + settings)
        return
    if not recipe:
        echo(listed())
        return
    given = settings_given(context.args)
    check(recipe, given)
    folder = out or Path("runs") / recipe
    try:
        with progress_bar() as tell:
            echo(run(recipe, given, folder, resume=resume, last_good=last_good, progress=tell, say=warn))
    except Stopped as stop:
        echo(f"promptloop: {stop}", err=True) if str(stop) else None
        raise typer.Exit(stop.code) from None


app.registered_commands += cli_rewards.app.registered_commands


@app.command(epilog="Example: promptloop methods fk")
def methods(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="One of them, with its settings; none lists all.")
    ] = "",
) -> None:
    """List what --control takes: every method with what it needs and costs."""
    from promptloop.recipes.methods import listed, told

    echo(told(name) if name else listed())


@app.command(epilog="Example: promptloop reproduce C1 C3 --quick --out results")
def reproduce(
    claims: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CLAIM]...",
            help="C1 to C9, feedback (default: all that can be measured); or steering, grid, dial.",
        ),
    ] = None,
    out: Out = Path("promptloop-results"),
    quick: Annotated[bool, typer.Option("--quick", help="One seed, few queries; for a look.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Train the policies first (hours).")] = False,
) -> None:
    """Measure the claims on the embedded world and print their tables; goes on where it was stopped."""
    from promptloop.recipes.titles import STUDIES, TITLES, claim_named

    chosen = [claim_named(name) for name in claims or []]
    with progress_bar() as tell:
        from promptloop.recipes.compared import compare
        from promptloop.recipes.reproduce import reproduce as run

        texts = [compare(name, out, quick=quick, progress=tell) for name in chosen if name in STUDIES]
        if len(texts) < len(chosen) or not chosen:
            rows = [name for name in chosen if name in TITLES]
            texts.append(run(rows, out, quick=quick, train=train, progress=tell, say=warn))
    echo("\n\n".join(texts))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (any position).")
    ] = False,
) -> None:
    if version:
        echo(__version__)
        raise typer.Exit()


# --- failing


def fail(message: str, debug: bool) -> NoReturn:
    """One sentence and exit code 2; the traceback too where it was asked for."""
    if debug:
        import traceback

        traceback.print_exc()
    typer.echo(f"promptloop: {' '.join(message.split())}", err=True)
    raise SystemExit(2)


def main() -> None:
    """Runs the command line; bad input is one sentence on the error stream and exit code 2."""
    arguments = sys.argv[1:] or ["--help"]
    debug = "--debug" in arguments
    sys.path.append(str(Path.cwd()))  # where the user's own "module:name" may lie
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(args=arguments, prog_name="promptloop", standalone_mode=False)
    except UsageError as error:
        fail(usage(error), debug)
    except (ValueError, OSError) as error:
        fail(str(error) or type(error).__name__, debug)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ == "OutOfMemory":  # ours, which says what to lower
            fail(str(error), debug)
        fail(f"stopped by {type(error).__name__}: {error} (--debug shows where)", debug)
    raise SystemExit(code if isinstance(code, int) else 0)


def usage(error: Any) -> str:
    """What is wrong with the command line, with the nearest command where one was mistyped."""
    message = error.format_message()
    commands = [
        str(command.name or getattr(command.callback, "__name__", "")) for command in app.registered_commands
    ]
    if "No such command" in message and "Did you mean" not in message:
        return f"{message.rstrip('.')}; {nearest(message.split(chr(39))[1], commands, 'commands')}"
    return message

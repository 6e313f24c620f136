"""The named rewards as `promptloop rewards` tells of them. Nothing of a reward is imported for it."""

from __future__ import annotations

import ast
import inspect
import re
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from promptloop.names import one_of
from promptloop.rewards.known import KNOWN, Known

NEEDED = re.compile(r"([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w.-]+)['\"]")  # a line of the package's metadata


def listed() -> str:
    """Every reward, one a line: name, state, what it is."""
    states = {name: state(known) for name, known in KNOWN.items()}
    wide, width = max(map(len, KNOWN)), max(map(len, states.values()))
    rows = ["promptloop score IMAGE... --prompt TEXT --reward NAME[:WHERE]; the rewards (promptloop rewards "
            "NAME tells more):", ""]  # fmt: skip
    rows += [f"  {name:{wide}}  {states[name]:{width}}  {known.title}" for name, known in KNOWN.items()]
    ready = list(states.values()).count("ready")
    return "\n".join([*rows, "", f"{len(KNOWN)} rewards, {ready} ready"])


def told(name: str) -> str:
    """All about one reward: what it is, its docstring, scale, licence, and how it is loaded."""
    known = KNOWN[one_of(name, KNOWN, "reward")]
    lines = [f"{name}: {known.title}", "", docstring(known.made), "", f"Scale: {known.scale}."]
    lines.append(f"Gradients: {'they flow' if known.differentiable else 'none flow'} to the images.")
    if known.licence:
        lines.append(f"Licence of the weights: {known.licence}.")
    lines.append(f"State here: {state(known)}.")
    lines += [f"Load it: {way}." for way in ways(name, known)]
    return "\n".join([*lines, f"In Python: {known.made.replace(':', '.')}."])


def state(known: Known) -> str:
    """ "ready", "needs extra" or "needs weights": whether the bare name can be asked for, as far as is seen
    without opening a file of the hub's cache.
    """
    if known.extra and not has_extra(known.extra):
        return "needs extra"
    if not known.where or ("ID" in known.where and known.hub and in_cache(known.hub)):
        return "ready"
    return "needs weights" if known.hub or "DIR" in known.where else f"needs {known.where}"


def ways(name: str, known: Known) -> list[str]:
    """How to come to the reward, each way as it is written."""
    found = []
    if known.extra and not has_extra(known.extra):
        found.append(f'first pip install "promptloop[{known.extra}]"')
    if not known.where:
        return [*found, f"--reward {name}"]
    if known.hub and "ID" not in known.where:
        what = f"a folder with the files of {known.hub} and what its docstring names beside them"
        return [*found, f"--reward {name}:{known.where} takes {what}"]
    if known.hub:
        found.append(f"--reward {name} takes what the hub's cache has of {known.hub}")
        found.append(f"--reward {name}:{known.hub} downloads that once")
    own = known.where.removesuffix("|ID") if known.hub else known.where
    return [*found, f"--reward {name}:{own} takes {'your own' if known.hub else 'what you name'}"]


def docstring(made: str) -> str:
    """The docstring of "module:name", read from the source; its module's where it has none itself."""
    module, _, name = made.partition(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {module}, where the reward {made} should be")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    own = next((node for node in tree.body if isinstance(node, kinds) and node.name == name), None)
    text = (own and ast.get_docstring(own)) or ast.get_docstring(tree) or ""
    return inspect.cleandoc(text)


def has_extra(extra: str) -> bool:
    """Whether everything is installed that promptloop[extra] names; not whether its version is right."""
    lines = (NEEDED.fullmatch(line) for line in requires("promptloop") or [])
    names = [line[1] for line in lines if line and line[2] == extra]
    return bool(names) and all(map(is_installed, names))


def is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def in_cache(hub: str) -> bool:
    """Whether the hub's cache has files of that repository; of which kind, loading tells."""
    from huggingface_hub.constants import HF_HUB_CACHE

    kept = Path(HF_HUB_CACHE) / f"models--{hub.replace('/', '--')}" / "snapshots"
    return any(file.is_file() for file in kept.glob("*/*"))


def row(name: str, known: Known) -> str:
    """The reward's line in the table of docs/rewards.md."""
    where = f":{known.where}".replace("|", "\\|") if known.where else ""
    needs = ", ".join(filter(None, [f"`[{known.extra}]`" if known.extra else "", known.hub]))
    gradients = "yes" if known.differentiable else "no"
    return (
        f"| `{name}{where}` | {known.title} | {known.scale} | {gradients} | {needs or '-'} | "
        f"{known.licence or '-'} |"
    )

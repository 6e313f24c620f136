"""The house rules, read from the source tree: who may import whom, sizes, names, safety, start-up time."""

import ast
import importlib
import inspect
import re
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "promptloop"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON = sorted(
    p for d in ("src", "tests", "benchmarks") if (ROOT / d).is_dir() for p in (ROOT / d).rglob("*.py")
)

LOWEST = {
    "world",
    "rewards",
    "policies",
    "denoisers",
    "schedules",
    "names",
    "complete",
    "json_file",
    "precision",
    "swap",
    "ledger",
}
LOOP = LOWEST | {"transition", "history", "solvers", "state", "sample", "parameters"}
MIDDLE = LOOP | {"controls"}
TRAIN = MIDDLE | {"rollout", "objectives", "timing", "turns"}
ARROWS = {  # room -> the rooms it may import
    **dict.fromkeys(LOWEST, LOWEST),
    "transition": set(),
    "history": {"schedules"},
    "solvers": {"schedules", "transition", "history"},
    "state": {"schedules", "denoisers", "transition", "solvers"},
    "sample": {"schedules", "denoisers", "transition", "solvers", "state", "ledger"},
    "parameters": {"denoisers", "policies", "names", "swap"},
    "timing": {"policies"},
    "turns": {"policies"},
    "interrupt": set(),
    "checkpoint": set(),
    "resuming": {"parameters", "checkpoint", "sharding", "swap"},
    "watch": TRAIN,
    "processes": {"objectives", "sharding"},
    "sharding": set(),
    "controls": MIDDLE,
    "rollout": TRAIN,
    "objectives": TRAIN,
    "train": TRAIN | {"checkpoint", "processes", "sharding", "swap", "interrupt", "resuming"},
    "bench": MIDDLE | {"bench"},
    "recipes": TRAIN
    | {"train", "processes", "watch", "checkpoint", "interrupt", "bench", "recipes", "__init__"},
    "terminal": set(),
    "options": set(),
    "cli": {"recipes", "names", "options", "terminal", "interrupt", "cli_rewards", "__init__"},
    "cli_rewards": {"recipes", "rewards", "options", "terminal"},
    "__main__": {"cli"},
    "studio": {"recipes", "studio", "__init__"},
    "__init__": {"__init__", *TRAIN, "train", "processes", "bench", "recipes"},
}
BANNED_ENDINGS = re.compile(r"(Manager|Handler|Helper|Factory|Registry|Utils?|Wrapper|Mixin|Adapter)$")
BANNED_NAMES = {"model", "beta", "noise_pred", "adapter"}
BASES_WITH_DEFAULTS = {"Control"}  # its five verbs are the identity, so it has no abstract method


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def ids(paths: list[Path]) -> list[str]:
    return [str(p.relative_to(ROOT)) for p in paths]


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path, at_import_time: bool = False) -> set[str]:
    """Modules of ours that this file imports; optionally only those executed when it is imported."""
    skipped: set[ast.AST] = set()
    if at_import_time:
        for node in ast.walk(tree(path)):
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if typing_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                skipped.update(ast.walk(node))
    modules = {dotted(p) for p in SOURCES}
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = list(path.relative_to(PACKAGE.parent).parts[: -node.level])
                base = ".".join([*parents, *base.split(".")]).rstrip(".")
            deeper = {f"{base}.{alias.name}" for alias in node.names}
            found.update(d if d in modules else base for d in deeper)
    return {name for name in found if name.split(".")[0] == "promptloop"}


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_import_arrows(path: Path) -> None:
    here = room(dotted(path))
    assert here in ARROWS, f"room {here!r} is not in the house: add it to ARROWS with what it may import"
    wrong = sorted(m for m in imports(path) if room(m) != here and room(m) not in ARROWS[here])
    assert not wrong, f"{here} must not import {wrong}"


def test_no_import_circles() -> None:
    graph = {dotted(p): imports(p, at_import_time=True) - {dotted(p)} for p in SOURCES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", PYTHON, ids=ids(PYTHON))
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_classes_are_abstract_or_final_and_settings_frozen() -> None:
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                assert not BANNED_ENDINGS.search(node.name), f"{node.name}: say what it is"
                for decorator in map(ast.unparse, node.decorator_list):
                    if decorator.startswith(("dataclass", "dataclasses.dataclass")):
                        assert "frozen=True" in decorator, f"{node.name}: settings are frozen"
        module = importlib.import_module(dotted(path))
        for kind in vars(module).values():
            for base in kind.__bases__ if isinstance(kind, type) else ():
                ours = base.__module__.startswith("promptloop") and base.__name__ not in BASES_WITH_DEFAULTS
                assert not ours or inspect.isabstract(base), f"{kind} extends {base}, which is not abstract"


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_names(path: Path) -> None:
    assert not re.search(r"(utils?|helpers?|manager|registry|factory)$", path.stem), path.stem
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            assert not (arguments | {node.name}) & BANNED_NAMES, (
                f"{node.name}({', '.join(sorted(arguments))})"
            )
        if isinstance(node, ast.ClassDef):
            fields = {
                s.target.id
                for s in node.body
                if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
            }
            assert not fields & BANNED_NAMES, f"{node.name}: {sorted(fields & BANNED_NAMES)}"


@pytest.mark.parametrize("path", PYTHON, ids=ids(PYTHON))
def test_nothing_is_unpickled(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            call, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert not call.startswith(("pickle.load", "joblib.load", "dill.load")), call
            assert keywords.get("allow_pickle") != "True", call
            if call == "torch.load":
                assert keywords.get("weights_only") == "True", "torch.load without weights_only=True"


def test_no_registry_hosts_and_no_machine_paths_in_tracked_files() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    hosts = [
        "pypi." + "org",
        "python" + "hosted",
        "arti" + "factory",
        "--index" + "-url",
        "--find" + "-links",
    ]
    paths = re.compile(r"(?<![\w.])/(?:work|root|home|Users|opt)" + r"/\w")
    for name in listing.stdout.splitlines():
        file = ROOT / name
        if not file.is_file() or file.suffix in {".safetensors", ".png", ".jpg", ".npz"}:
            continue
        text = file.read_text(encoding="utf-8", errors="ignore")
        assert not [h for h in hosts if h in text], f"{name} names a package registry"
        found = paths.search(text)
        assert not found, f"{name} holds a path of one machine: {found and found.group(0)}"


def test_every_name_in_a_table_imports() -> None:
    pattern = re.compile(r"^promptloop(\.\w+)*:\w+$")
    found = 0
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            values = node.values if isinstance(node, ast.Dict) else []
            for value in values:
                if (
                    isinstance(value, ast.Constant)
                    and isinstance(value.value, str)
                    and pattern.match(value.value)
                ):
                    module, _, name = value.value.partition(":")
                    assert hasattr(importlib.import_module(module), name), value.value
                    found += 1
    assert found >= 10


def test_public_names_are_the_objects_not_the_modules() -> None:
    import promptloop

    assert set(promptloop.__all__) == {*promptloop._NAMES, "__version__"}
    for name in promptloop.__all__:
        assert not isinstance(getattr(promptloop, name), type(sys)), name


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """Fails if cli.py imports torch, diffusers or transformers at the top."""
    code = (
        "import sys; sys.argv = ['promptloop', '--help']\n"
        "from promptloop.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    command = Path(sys.executable).with_name("promptloop")
    seconds = []
    for _ in range(3):  # processor time, which on an idle machine is the time it takes
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([str(command), "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5, f"promptloop --help took {min(seconds):.2f} s"


def test_files_of_tests_have_names_of_their_own() -> None:
    """Two of one name in different folders cannot be collected in one process: one of them would not run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})

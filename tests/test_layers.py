"""The architecture of the package, as tests on its import statements.

Imports run one way, one module knows TransformerLens from the inside, and heavy libraries are
imported where they are used. A new module gets a line in `LAYERS`; a failure names file, line and
rule.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "tl_sparse"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

LAYERS = {
    "rules": -1,
    "config": 0,
    "types": 0,
    "files": 0,
    "nodes": 0,
    "threads": 0,
    "largest": 0.5,
    "largest_on_gpu": 0.5,
    "products": 1,
    "functional": 1,
    "schedules": 1,
    "tokenizer": 1,
    "circuit_rules": 0.5,
    "circuit": 1,
    "circuit_sets": 1.5,
    "summary": 1,
    "history": 1,
    "layers": 2,
    "masks": 2,
    "sites": 2,
    "checkpoints": 1,
    "coders": 1.5,
    "hub": 1,
    "released": 2,
    "model": 3,
    "selection": 3,
    "circuit_checks": 3,
    "resampling": 4,
    "coded_edges": 4.5,
    "data": 4,
    "tasks": 5,
    "tracr": 4,
    "found": 4,
    "training": 5,
    "ablation": 5,
    "pruning": 6,
    "presets": 1,
    "interface": 6,
    "wording": 6,
    "auditing": 7,
    "compiling": 7,
    "control": 7,
    "curves": 7,
    "drawing": 7,
    "gate": 7,
    "explain": 7,
    "exports": 7,
    "markup": 7,
    "sae_baseline": 7,
    "audit_page": 8,
    "displays": 8,
    "plots": 8,
    "sae_arm": 8,
    "bench": 8,
    "sweeps": 9.5,
    "zoo": 8,
    "concepts": 8,
    "capability": 9,
    "bridges": 8,
    "report": 9,
    "viewer": 9,
    "demo": 10,
    "cli": 11,
    "__main__": 12,
}
"""A module imports only from lower numbers. A package (`data/`, `tasks/`) counts as one module."""

UPWARDS = {
    ("circuit", "explain"): "Circuit.explain: a circuit is data, and users look for what it can do"
    " on the object itself",
    ("circuit", "compiling"): "Circuit.compile: likewise",
    ("circuit", "circuit_sets"): "Circuit's &, | and -: likewise",
    ("auditing", "audit_page"): "AuditReport in a notebook: IPython asks the object itself",
    ("circuit", "displays"): "Circuit in a notebook: likewise",
    ("history", "displays"): "History in a notebook: likewise",
    ("summary", "displays"): "ModelSummary in a notebook: likewise",
}
"""Imports against the rule, each with its reason: allowed inside a function only, so that a circuit
can be read and compared without loading what it calls."""

HOST = "transformer_lens"
HOST_ALLOWED = ("transformer_lens", "transformer_lens.hook_points")
"""What every module may import from the host; only `model` may look deeper."""

ONLY_IN = {"plotly": {"plots"}, "sae_lens": {"sae_baseline", "sae_arm"}}
"""Libraries that stand behind one module."""

ONLY_IN_FUNCTIONS = {"datasets", "plotly", "optuna", "sae_lens"}
"""Libraries that are slow to import: never at the top of a module."""


@dataclass(frozen=True)
class Import:
    """One imported name: `from target import name`, or `import target` without a name."""

    target: str
    name: str | None
    line: int
    at_top: bool


def imports_of(source: str, module: str, *, is_package: bool = False) -> Iterator[Import]:
    """All imports in a file, those inside functions too, with relative ones resolved."""
    tree = ast.parse(source)
    in_functions = {
        inner
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(function)
    }
    for node in ast.walk(tree):
        at_top = node not in in_functions
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, at_top)
        elif isinstance(node, ast.ImportFrom):
            target = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = len(parts) - node.level + (1 if is_package else 0)
                target = ".".join([*parts[:kept], *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(target, alias.name, node.lineno, at_top)


def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def top(module: str) -> str | None:
    """`tl_sparse.data.corpus` -> `data`; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def own_target(found: Import, known: set[str]) -> str | None:
    """The module of ours that an import reaches, or None if it reaches none."""
    if found.target.split(".")[0] != PACKAGE:
        return None
    longest = f"{found.target}.{found.name}"
    return longest if found.name and longest in known else found.target


def violations(
    module: str, source: str, *, is_package: bool = False, known: set[str] | None = None
) -> list[str]:
    """Every broken rule of one file, as `line: rule`; cycles are left to `sibling_cycle`."""
    known = (known or set()) | {f"{PACKAGE}.{name}" for name in LAYERS}
    here, broken = top(module), []
    if here is not None and here not in LAYERS:
        return [f"1: `{here}` has no layer. Give it a number in LAYERS (tests/test_layers.py)"]
    for found in imports_of(source, module, is_package=is_package):
        library = found.target.split(".")[0]
        target = own_target(found, known)
        if target is not None and here is not None:
            there = top(target)
            if there is None:
                broken.append(f"{found.line}: imports the package itself, not one of its modules")
            elif there not in LAYERS:
                broken.append(f"{found.line}: imports `{there}`, which has no layer")
            elif (here, there) in UPWARDS:
                if found.at_top:
                    broken.append(
                        f"{found.line}: import `{there}` inside the function that uses it"
                    )
            elif there != here and LAYERS[there] >= LAYERS[here]:
                broken.append(
                    f"{found.line}: `{here}` (layer {LAYERS[here]}) imports `{there}` (layer"
                    f" {LAYERS[there]}); only lower layers may be imported"
                )
        if library == HOST and here != "model" and found.target not in HOST_ALLOWED:
            broken.append(f"{found.line}: only `model` may import `{found.target}`")
        if library in ONLY_IN and here not in ONLY_IN[library]:
            allowed = " or ".join(sorted(ONLY_IN[library])) or "no module"
            broken.append(f"{found.line}: `{library}` may be imported by {allowed} only")
        if library in ONLY_IN_FUNCTIONS and found.at_top:
            broken.append(f"{found.line}: import `{library}` inside the function that uses it")
    return broken


def sibling_cycle(sources: dict[str, tuple[str, bool]]) -> list[str] | None:
    """A cycle of imports among modules given as name -> (source, is_package), or None.

    What `UPWARDS` allows is not counted: it runs when a function is called.
    """
    known, graph = set(sources), {}
    for module, (source, is_package) in sources.items():
        targets = {own_target(i, known) for i in imports_of(source, module, is_package=is_package)}
        graph[module] = {
            t
            for t in targets
            if t in known and t != module and (top(module), top(t)) not in UPWARDS
        }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_the_import_rules(module):
    path = MODULES[module]
    found = violations(
        module, path.read_text("utf-8"), is_package=path.name == "__init__.py", known=set(MODULES)
    )
    assert not found, f"{path}:\n" + "\n".join(found)


def test_no_modules_import_each_other_in_a_circle():
    sources = {m: (p.read_text("utf-8"), p.name == "__init__.py") for m, p in MODULES.items()}
    assert sibling_cycle(sources) is None


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("tl_sparse.masks", "from tl_sparse.model import x", "only lower layers"),
        ("tl_sparse.masks", "from tl_sparse.sites import x", "only lower layers"),
        ("tl_sparse.masks", "from tl_sparse import training", "only lower layers"),
        ("tl_sparse.masks", "import tl_sparse.training", "only lower layers"),
        ("tl_sparse.masks", "from . import training", "only lower layers"),
        ("tl_sparse.masks", "def f():\n    from .training import train", "only lower layers"),
        ("tl_sparse.data.corpus", "from ..training import train", "only lower layers"),
        ("tl_sparse.data.corpus", "from tl_sparse.tasks.base import Task", "only lower layers"),
        ("tl_sparse.masks", "from tl_sparse import HookedSparseTransformer", "package itself"),
        ("tl_sparse.masks", "import tl_sparse", "package itself"),
        ("tl_sparse.masks", "from tl_sparse.utils import x", "no layer"),
        ("tl_sparse.utils", "", "no layer"),
        ("tl_sparse.pruning", "from transformer_lens.components import Embed", "only `model`"),
        ("tl_sparse.pruning", "import transformer_lens.utilities", "only `model`"),
        ("tl_sparse.pruning", "def f():\n    import plotly.graph_objects", "plots only"),
        ("tl_sparse", "import plotly", "plots only"),
        ("tl_sparse.plots", "import plotly", "inside the function"),
        ("tl_sparse.control", "def f():\n    import sae_lens", "sae_arm or sae_baseline only"),
        ("tl_sparse.data", "from datasets import Dataset", "inside the function"),
        ("tl_sparse.circuit", "from tl_sparse.explain import explain", "inside the function"),
        ("tl_sparse.circuit", "def f():\n    from tl_sparse.report import x", "only lower layers"),
    ],
)
def test_the_checker_sees_a_violation(module, source, rule):
    found = violations(module, source, is_package=module == "tl_sparse.data")
    assert len(found) >= 1
    assert any(rule in line for line in found), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tl_sparse.masks", "from tl_sparse import functional\nfrom .config import SparsityConfig"),
        ("tl_sparse.data.corpus", "from .tokenizer import x\nfrom tl_sparse.data import sources"),
        ("tl_sparse.model", "from transformer_lens.components import Embed"),
        ("tl_sparse.pruning", "from transformer_lens import HookedTransformer"),
        ("tl_sparse.pruning", "from transformer_lens.hook_points import HookPoint"),
        ("tl_sparse.plots", "def f():\n    import plotly.graph_objects as go"),
        ("tl_sparse.data", "def f():\n    from datasets import Dataset"),
        ("tl_sparse", "from tl_sparse.cli import app"),
        ("tl_sparse.circuit", "def f():\n    from tl_sparse.explain import explain"),
    ],
)
def test_the_checker_lets_lawful_imports_pass(module, source):
    assert violations(module, source) == []


def test_the_checker_sees_a_cycle_between_siblings():
    a, b = "tl_sparse.data.a", "tl_sparse.data.b"
    assert sibling_cycle({a: ("from .b import x", False), b: ("", False)}) is None
    cycle = sibling_cycle({a: ("from .b import x", False), b: ("from . import a", False)})
    assert cycle is not None
    assert set(cycle) == {a, b}


@pytest.mark.parametrize(("here", "there"), UPWARDS)
def test_every_exception_is_made_use_of_and_goes_upwards(here, there):
    sources = [path.read_text("utf-8") for name, path in MODULES.items() if top(name) == here]
    assert any(f"from {PACKAGE}.{there} import" in source for source in sources)
    assert LAYERS[there] > LAYERS[here]


def loaded_after(statement: str, *, after: str = "") -> set[str]:
    """Names of top-level libraries that `statement` loads in a fresh Python, after another one."""
    names = "{n.split('.')[0] for n in sys.modules}"
    code = f"import sys\n{after}\nbefore = {names}\n{statement}\nprint(*{names} - before)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT.parent,
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_that_its_host_does_not_load():
    # Hence it costs a fraction of a second over TransformerLens: no plotly, no SAELens, no optuna.
    statement = f"from {PACKAGE} import *\nfrom {PACKAGE} import plots"
    assert loaded_after(statement, after=f"import {HOST}") == {PACKAGE}


def test_the_command_line_shows_its_help_without_torch():
    heavy = {"torch", "transformer_lens", "transformers", "datasets", "numpy", "tokenizers"}
    assert loaded_after(f"import {PACKAGE}.cli").isdisjoint(heavy)
    assert heavy <= loaded_after(f"from {PACKAGE} import train")


def test_the_light_import_check_can_fail():
    assert "plotly" in loaded_after("import plotly")

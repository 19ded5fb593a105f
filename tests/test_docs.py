"""The docs cover the package, and the pages that name commands name real ones."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

import tl_sparse

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def pages_in(nav: Any) -> list[str]:
    """The pages of an mkdocs nav, in order."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_in(entry)]


def documented_modules(pages: dict[str, str]) -> set[str]:
    """Every module that some page renders with a `:::` directive."""
    return {m for text in pages.values() for m in re.findall(r"^::: (\S+)", text, re.MULTILINE)}


def homes(name: str, value: Any) -> set[str]:
    """The modules of ours that a public name may be documented under."""
    if isinstance(value, ModuleType):
        return {value.__name__}
    home = getattr(value, "__module__", None)
    if isinstance(home, str) and home.split(".")[0] == "tl_sparse":
        return {home}
    # Constants and type aliases do not know where they were defined: any module that has them.
    return {m for m in all_modules() if hasattr(importlib.import_module(m), name)} - {"tl_sparse"}


def all_modules() -> list[str]:
    """Dotted names of the package's modules, private ones left out."""
    root = Path(tl_sparse.__file__).parent
    paths = [path.relative_to(root.parent).with_suffix("").parts for path in root.rglob("*.py")]
    names = {parts[:-1] if parts[-1] == "__init__" else parts for parts in paths}
    return sorted(".".join(p) for p in names if not any(part.startswith("_") for part in p))


NAV = pages_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
PAGES = {page: (DOCS / page).read_text("utf-8") for page in NAV if (DOCS / page).exists()}
API = documented_modules({p: text for p, text in PAGES.items() if p.startswith("api/")})


def test_every_page_of_the_nav_exists_and_every_page_is_in_the_nav():
    written = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    written |= {f"tutorials/{p.stem}.md" for p in (DOCS / "tutorials").glob("*.py")}
    assert written == {page for page in NAV if page.endswith(".md")}


@pytest.mark.parametrize("page", [page for page in NAV if page.startswith("api/")])
def test_api_page_renders_its_module(page):
    assert f"tl_sparse.{Path(page).stem}" in documented_modules({page: PAGES[page]})


def test_every_public_name_is_on_an_api_page():
    public = [name for name in tl_sparse.__all__ if not name.startswith("__")]
    defined_in = {name: homes(name, getattr(tl_sparse, name)) for name in public}
    missing = {name: sorted(found) for name, found in defined_in.items() if not found & API}
    assert not missing, (
        f"No page of docs/api renders the modules of {missing} (name: defined in). Add"
        " `::: <module>` to a page that mkdocs.yml lists."
    )
    assert public


@pytest.mark.parametrize("module", [m for m in all_modules() if m.count(".") == 1])
def test_module_has_an_api_page(module):
    assert module in API


def test_the_api_check_can_fail():
    assert documented_modules({"api/a.md": "# a\n\n::: tl_sparse.a\n"}) == {"tl_sparse.a"}
    assert "tl_sparse.not_there" not in API
    assert homes("_a_name_of_no_module", 0) == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/index.md"])
def test_make_commands_named_on_a_page_exist(page):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:`|^    |^)make ([a-z]+)", (ROOT / page).read_text("utf-8"), re.M))
    assert named, f"{page} names no make command, or the pattern of this test is out of date"
    assert named <= targets


TABLE = re.findall(r"^\| (?!tool)(?!---)(.*) \|$", (DOCS / "concepts/tools.md").read_text(), re.M)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.split(" |")[0][:40])
def test_every_row_of_the_table_of_tools_names_tests_that_exist(row):
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", row.rpartition(" | ")[2])
    assert all(f"def {name}(" in tests for name in named), row
    assert named or "nothing can refuse" in row


TEXTS = [
    *ROOT.glob("*.md"), *(p for top in ("tl_sparse", "tests", "docs", "examples", "experiments")
    for end in ("md", "py", "css", "js") for p in (ROOT / top).rglob(f"*.{end}")),
]  # fmt: skip


def test_no_file_has_the_marks_of_an_unfinished_merge():
    """Python would not run with them; a page is built as if nothing were wrong."""
    mark = re.compile(r"^(<{7} |>{7} |={7}$)", re.MULTILINE)
    assert len(TEXTS) > 300
    assert [path for path in TEXTS if mark.search(path.read_text("utf-8"))] == []


def test_the_page_of_the_command_line_has_every_command_with_what_it_takes():
    from tl_sparse.cli import COMMANDS, app

    page = PAGES["cli.md"]
    for command in COMMANDS:
        assert f"| `{command.__name__}` |" in page
    for flag, sentence in (
        ("config", page[: page.index("take `--config FILE`")].rpartition("\n\n")[2]),
        ("device", page[page.index("`--device` where") : page.index(" run.\n")]),
    ):
        group: Any = typer.main.get_command(app)
        takes = {
            c.name for c in group.commands.values()
            if any(f"--{flag}" in parameter.opts for parameter in c.params)
        }  # fmt: skip
        assert set(re.findall(r"`(\w+)`", sentence)) == takes, flag

"""Make pages of the tutorials: an mkdocs hook.

1. `docs/tutorials/*.py` are scripts in cells (the percent format), which run as they are.
2. With TL_SPARSE_EXECUTE=1, which `make tutorials` sets, each is executed in a kernel of its own, two
   at a time and one thread each; a cell that fails stops the build. Without, pages have no output.
3. Cells and outputs become Markdown, so links in them are checked like those of any page.
"""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbformat import NotebookNode

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
CELL_SECONDS = 600


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each tutorial."""
    scripts = sorted(Path(config.docs_dir, "tutorials").glob("*.py"))
    if os.environ.get("TL_SPARSE_EXECUTE") == "1":
        os.environ.update(ONE_THREAD)
        with ThreadPoolExecutor(2) as pool:
            pages = list(pool.map(executed, scripts))
    else:
        pages = [page(jupytext.read(script), script, "") for script in scripts]
    for script, text in zip(scripts, pages, strict=True):
        files.append(File.generated(config, f"tutorials/{script.stem}.md", content=text))
    return files


def executed(script: Path) -> str:
    """Run a script cell by cell in an empty folder, and make its page."""
    notebook, began = jupytext.read(script), time.perf_counter()
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=CELL_SECONDS, kernel_name="python3",
            resources={"metadata": {"path": folder}}, extra_arguments=["--log-level=ERROR"],
        )  # fmt: skip
        client.execute()
    seconds = time.perf_counter() - began
    print(f"tutorial {script.name}: {seconds:.0f} s", flush=True)
    return page(notebook, script, f", and what it printed in {seconds:.0f} s on one core")


def page(notebook: NotebookNode, script: Path, how: str) -> str:
    """Give a notebook as Markdown."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\((\w+)\.py\)", r"(\1.md)", cell.source))
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += [shown(output) for output in cell.get("outputs", ())]
    parts.append(f"This page is the script [{script.name}]({script.name}){how}.")
    return "\n\n".join(part for part in parts if part)


def shown(output: Any) -> str:
    """Give one output: HTML where there is some, else text; warnings and logs are left out.

    HTML goes into a shadow root, where the site's styles for details and captions don't reach it.
    """
    if output.output_type == "stream":
        return fenced(output.text) if output.name == "stdout" else ""
    data = output.get("data", {})
    if "text/html" in data:
        html = re.sub(r"\n\s*\n+", "\n", data["text/html"])
        return f'<div><template shadowrootmode="open">\n{html}\n</template></div>'
    return fenced(data.get("text/plain", ""))


def fenced(text: str) -> str:
    """Give text as it is, in a fence that it can't close."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}text\n{text.rstrip()}\n{fence}" if text.strip() else ""

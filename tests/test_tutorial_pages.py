"""The hook that makes pages of the tutorials."""

import importlib.util
from pathlib import Path

import jupytext
import pytest
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
assert SPEC is not None
assert SPEC.loader is not None
hooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hooks)

SCRIPT = """# %% [markdown]
# # Title
#
# See [the next](other_one.py).

# %%
import sys

print("a ``` b")
print("noise", file=sys.stderr)


class Shown:
    def _repr_html_(self):
        return "<p>one</p>\\n\\n<p>two</p>"


Shown()

# %%
6 * 7
"""


def written(folder: Path, text: str) -> Path:
    script = folder / "mine.py"
    script.write_text(text, encoding="utf-8")
    return script


def test_a_tutorial_becomes_a_page_with_what_it_prints(tmp_path, capsys):
    text = hooks.executed(written(tmp_path, SCRIPT))
    assert text.startswith("# Title\n\nSee [the next](other_one.md).\n\n```python\nimport sys")
    assert "````text\na ``` b\n````" in text
    assert "noise" not in text.replace('print("noise"', "")
    assert '<div><template shadowrootmode="open">\n<p>one</p>\n<p>two</p>\n</template>' in text
    assert "```python\n6 * 7\n```\n\n```text\n42\n```" in text
    assert "This page is the script [mine.py](mine.py), and what it printed in " in text
    assert capsys.readouterr().out.startswith("tutorial mine.py: ")


def test_without_a_run_a_page_has_the_code_alone(tmp_path):
    script = written(tmp_path, SCRIPT)
    text = hooks.page(jupytext.read(script), script, "")
    assert "6 * 7" in text
    assert "42" not in text
    assert text.endswith("This page is the script [mine.py](mine.py).")


def test_a_cell_that_fails_stops_the_build(tmp_path):
    with pytest.raises(CellExecutionError, match="no such luck"):
        hooks.executed(written(tmp_path, '# %%\nraise ValueError("no such luck")\n'))

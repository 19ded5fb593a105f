"""What a user installs: the wheel's files and metadata, and the workflows that make a release."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

import tl_sparse

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
VERSIONS = [
    found.group(1)
    for line in PROJECT["classifiers"]
    if (found := re.search(r"Python :: (3\.\d+)$", line))
]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=ROOT, check=True)
    (path,) = out.iterdir()
    assert path.name == f"tl_sparse-{tl_sparse.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    ours = {p.relative_to(ROOT) for p in (ROOT / "tl_sparse").rglob("*") if p.is_file()}
    ours = {p.as_posix() for p in ours if "__pycache__" not in p.parts}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == ours
    for name in ("py.typed", "matched_width.json", "viewer/viewer.js", "viewer/viewer.css"):
        assert f"tl_sparse/{name}" in packed


def test_the_wheels_metadata_is_that_of_the_project(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    about = Parser().parsestr(wheel.read(name).decode())
    assert about["Version"] == tl_sparse.__version__
    assert about["Requires-Python"] == PROJECT["requires-python"] == f">={VERSIONS[0]}"
    assert set(about.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert "Typing :: Typed" in about.get_all("Classifier", [])
    assert any(each.endswith("licenses/LICENSE") for each in wheel.namelist())
    (entry,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "tl-sparse = tl_sparse.cli:app" in wheel.read(entry).decode()


def test_changelog_citation_and_package_have_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == tl_sparse.__version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[:2] == ["Unreleased", tl_sparse.__version__]


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_reads_only_names_versions_and_calls_what_make_has(path):
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))
        for target in re.findall(r"make ([\w-]+)", step.get("run", "")):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8")
    # What else a job may do, it says itself, and never more than this.
    for job in workflow["jobs"].values():
        assert set(job.get("permissions", {})) <= {"id-token", "pages"}


def test_every_python_that_is_named_is_tested():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    assert matrix["jobs"]["test"]["strategy"]["matrix"]["python"] == VERSIONS
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "docs.yml", "release.yml"]

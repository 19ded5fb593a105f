# Everything a contributor or a reader does. Needs only Python 3.11, git and make:
# the first command that needs it builds .venv, later ones find it ready.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CHROMIUM ?= chromium
PYTEST_ARGS ?= -n 2 --dist loadfile --durations 25

# Small models wake their threads often: spinning a little saves a quarter of the time on idle cores,
# and spinning for long, which is the default, costs a multiple of it when the cores are shared.
export GOMP_SPINCOUNT := 1000
# Training makes and frees the same large buffers at each step: let glibc keep them.
export MALLOC_TRIM_THRESHOLD_ := 4000000000
export MALLOC_MMAP_THRESHOLD_ := 4000000000
export MALLOC_TOP_PAD_ := 200000000
# Compile our modules once, not in each process that a test starts, also where bytecode is not kept.
export PYTHONDONTWRITEBYTECODE :=
# Nothing below needs a network once .venv is there.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help demo tutorials readme test browser test-browser test-host dist test-wheel check bench docs clean

help:  ## list these commands
	@echo "tl_sparse: weight-sparse transformers and their circuits."
	@echo
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

demo: $(STAMP)  ## text -> sparse model -> circuit, in demo/ (stages that are there are kept)
	$(BIN)/tl-sparse demo

test: $(STAMP)  ## the tests and the docstring examples, in two processes (PYTEST_ARGS="" for one)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-browser: browser  ## the viewer's tests in Chromium (installs it with apt if it is not there, as root)
	TL_SPARSE_CHROMIUM="$$(command -v $(CHROMIUM))" $(BIN)/python -m pytest tests/test_browser.py

browser: $(STAMP)
	@command -v $(CHROMIUM) >/dev/null || { apt-get update -q && timeout 400 apt-get install -q -y $(CHROMIUM); } >/dev/null 2>&1 || true
	@command -v $(CHROMIUM) >/dev/null || { echo "No $(CHROMIUM) is here, and none could be installed (apt-get install $(CHROMIUM))."; exit 1; }

test-host: $(STAMP)  ## TransformerLens' own tests with our class in place of theirs (10 minutes; needs PyPI)
	$(BIN)/python tests/host_suite.py

dist: $(STAMP)  ## the sdist, and from it the wheel, in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

test-wheel: dist  ## the wheel in an empty environment: every module, then the demo's smallest size (needs PyPI)
	PYTHON=$(PYTHON) ./.ci/test-wheel

check: $(STAMP)  ## lint, format, types and a strict build of the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/mkdocs build --strict

bench: $(STAMP)  ## speed and memory beside plain PyTorch, in bench.json and bench.md (BENCH_ARGS="--sizes small" for less)
	$(BIN)/tl-sparse bench $(BENCH_ARGS)

tutorials: $(STAMP)  ## run every tutorial and build the docs with what they print, in site/ (two minutes)
	TL_SPARSE_EXECUTE=1 $(BIN)/mkdocs build --strict

readme: $(STAMP)  ## run every command of the README as it is written (a quarter of an hour)
	$(BIN)/python .ci/readme

docs: $(STAMP)  ## serve the docs on http://127.0.0.1:8000
	$(BIN)/mkdocs serve

clean:  ## remove what was built (keeps .venv and demo/)
	rm -rf site build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Installs again when the requirements change. A venv that is already there is kept and brought up to date.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time takes some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "No $(PYTHON) here? Try: make PYTHON=python3.12"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,docs]'
	@touch $@

"""Run TransformerLens' own tests with our model in place of theirs: a check from outside.

    make test-host            (or: python tests/host_suite.py --source FOLDER)

1. Fetch the source distribution of the installed TransformerLens; take its `tests`, nothing else.
2. Lay out a folder as a Hugging Face cache holds models: the names that the tests ask for, in small
   shapes, with random weights and a tokenizer made from the tests' own texts. Nothing else is ever
   downloaded, and no cache but this one is read or written.
3. Run the same modules twice: as they are, and with every name bound to `HookedTransformer` bound
   to `HookedSparseTransformer` before a test is read. Both check shapes, as upstream's runs do.
4. Compare test by test. Whatever passes with theirs has to pass with ours, or stand in `EXPECTED`.

Only modules that name the class are taken: the others can't tell the two apart.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest

Which = Literal["theirs", "ours"]
Outcomes = dict[str, dict[str, Any]]
Pair = tuple[str, dict[str, Any], dict[str, Any]]
Wrapper = Generator[None, Any, Any]

REPOSITORY = Path(__file__).resolve().parents[1]

MENTIONS = re.compile(r"HookedTransformer\b|gpt2_model|gpt2_hooked_processed")
"""A module that says none of these never meets the class."""

LEFT_OUT = (
    "*bridge*",  # the other model class of TransformerLens
    "*encoder*",
    "*/pretrained_weight_conversions/*",  # state dicts only, no model
    "*/model_registry/*",  # upstream's own tooling, as are the next two
    "*/scripts/*",
    "*test_make_docs.py",
    "*test_lit.py",  # needs lit-nlp
    "*/mps/*",
    "*/benchmarks/*",
)

SECONDS_PER_TEST = 120

NO_SUCH_SHAPE = (
    "Refused by name when the model is made: blocks of this kind (grouped heads, gated or expert "
    "MLPs, norms after a sublayer or the embedding) are not among ours."
)
EXPECTED: tuple[tuple[str, str, str], ...] = (
    (
        "*::test_hooked_transformer_constructor_warns_once",
        "DID NOT WARN",
        "The host announces its end in 4.0 to whoever makes a HookedTransformer. Who makes one of "
        "ours can do nothing about it, so the constructor keeps that warning quiet.",
    ),
    (
        "*::test_cache_hook_names",
        "hook_attn_read",
        "The test lists every hook point. Ours has two more in each block, hook_attn_read and "
        "hook_mlp_read; the others are the same, in the same order.",
    ),
    ("*grouped_query_att*", "does not support cfg.", NO_SUCH_SHAPE),
    ("*/test_transformer_block_olmo_post_norm.py::*", "does not support cfg.", NO_SUCH_SHAPE),
    ("*/test_moe_fold_guard.py::*", "does not support cfg.", NO_SUCH_SHAPE),
    ("*::test_bloom_similarity_*", "does not support cfg.", NO_SUCH_SHAPE),
)
"""Test, what its error says, and why it may fail with ours though it passes with theirs."""

NEEDS_DOWNLOAD = re.compile("internet connection|LocalEntryNotFoundError|mmlu")


# -- stand-ins for what the tests download --------------------------------------------------------

GPT2: dict[str, Any] = dict(model_type="gpt2", n_layer=12, n_head=12, n_embd=96, n_ctx=1024)
PAIR = ["global", "local"]
NEO = dict(model_type="gpt_neo", num_heads=16, hidden_size=64)
NEOX = dict(model_type="gpt_neox", hidden_size=128, num_hidden_layers=6, intermediate_size=512)
OPT: dict[str, Any] = dict(model_type="opt", bos_token_id=1, eos_token_id=1, pad_token_id=2)
OPT |= dict(num_hidden_layers=12, num_attention_heads=12, hidden_size=96, ffn_dim=384)
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "distilgpt2": GPT2 | dict(n_layer=6),
    "roneneldan/TinyStories-1M": NEO | dict(num_layers=8, attention_types=[[PAIR, 4]]),
    "roneneldan/TinyStories-33M": NEO | dict(num_layers=4, attention_types=[[PAIR, 2]]),
    "EleutherAI/pythia-14m": NEOX | dict(num_attention_heads=4),
    "EleutherAI/pythia-70m": NEOX | dict(num_attention_heads=8),
    "facebook/opt-125m": OPT,
    "bigscience/bloom-560m": dict(model_type="bloom", hidden_size=96, n_layer=4, n_head=8),
    "EleutherAI/gpt-j-6B": dict(model_type="gptj", n_embd=64, n_layer=1, n_head=4, rotary_dim=16),
}
"""Hugging Face's: real numbers of layers and heads mostly, small widths."""

HOST_MODELS = {
    "NeelNanda/Attn_Only_2L512W_C4_Code": {"n_layers": 2, "attn_only": True},
    "NeelNanda/SoLU_1L512W_C4_Code": {"n_layers": 1},
    "NeelNanda/SoLU_2L512W_C4_Code": {"n_layers": 2},
    "NeelNanda/SoLU_3L512W_C4_Code": {"n_layers": 3},
}
"""TransformerLens' author's, kept in its own format."""

HOST_TOKENIZER = "NeelNanda/gpt-neox-tokenizer-digits"
HOST_SHAPE: dict[str, Any] = dict(d_model=128, d_mlp=512, d_head=16, n_heads=8, n_ctx=1024)
HOST_SHAPE |= dict(act_fn="solu_ln", normalization_type="LN", tokenizer_name=HOST_TOKENIZER)
REVISION = "0" * 40


def make_hub(hub: Path, texts: list[str]) -> None:
    """Fill a Hugging Face cache with the stand-ins."""
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    d_vocab = 0
    for name in (*MODELS, *HOST_MODELS, HOST_TOKENIZER):
        mark = "</s>" if "opt" in name else "<|endoftext|>"
        d_vocab = _save_tokenizer(_snapshot(hub, name), texts, mark=mark)
    for name, shape in MODELS.items():
        fields: dict[str, Any] = shape | {"vocab_size": d_vocab}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
        _randomize(model)
        model.save_pretrained(_snapshot(hub, name))
    for name, shape in HOST_MODELS.items():
        saved = HOST_SHAPE | {"attn_only": False, "d_vocab": d_vocab} | shape
        cfg = HookedTransformerConfig.from_dict(saved | {"tokenizer_name": None})
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            model = HookedTransformer(cfg)
        _randomize(model)
        (_snapshot(hub, name) / "config.json").write_text(json.dumps(saved))
        torch.save(model.state_dict(), _snapshot(hub, name) / "model_final.pth")


def _snapshot(hub: Path, name: str) -> Path:
    root = hub / ("models--" + name.replace("/", "--"))
    folder = root / "snapshots" / REVISION
    folder.mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(REVISION)
    return folder


def _save_tokenizer(folder: Path, texts: list[str], *, mark: str) -> int:
    """Train a byte-level tokenizer in which each word is one token, save it, give its size."""
    from tokenizers import ByteLevelBPETokenizer

    special = ["<|endoftext|>", "</s>", "<pad>"]
    size = {"vocab_size": 30_000, "min_frequency": 1}
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, special_tokens=special, show_progress=False, **size)
    bpe.save_model(str(folder))
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}
    config |= {"bos_token": mark, "eos_token": mark, "unk_token": mark}
    config |= {"pad_token": "<pad>", "add_bos_token": True} if mark == "</s>" else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return bpe.get_vocab_size()


def _randomize(model: Any) -> None:
    """Move every parameter away from its start, in place: no term may hide in a zero bias."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


# -- one run of their tests -----------------------------------------------------------------------


class Recorder:
    """A pytest plugin: puts our class in place, stops slow tests, and notes each outcome."""

    def __init__(self, which: str) -> None:
        self.which = which
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.met = False

    def pytest_sessionstart(self) -> None:
        """Swap after jaxtyping's import hook is in place and before any test is imported."""
        import huggingface_hub
        import transformer_lens

        recorder, theirs = self, transformer_lens.HookedTransformer
        wanted = theirs
        if self.which == "ours":
            from tl_sparse import HookedSparseTransformer as wanted

            for module in [m for n, m in sys.modules.items() if n.startswith("transformer_lens")]:
                for name in [n for n, value in vars(module).items() if value is theirs]:
                    setattr(module, name, wanted)

        def getattribute(model: Any, name: str) -> Any:
            recorder.met = recorder.met or issubclass(type(model), wanted)
            return object.__getattribute__(model, name)

        def list_repo_files(api: Any, repo_id: str, **kwargs: Any) -> list[str]:
            folder = _snapshot(Path(os.environ["HF_HUB_CACHE"]), repo_id)
            return [path.name for path in folder.iterdir()]

        theirs.__getattribute__ = getattribute
        huggingface_hub.HfApi.list_repo_files = list_repo_files  # type: ignore[method-assign]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Wrapper:
        self.met = False
        random.seed(0)  # beartype draws from it too, not equally often in both runs
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Wrapper:
        with _alarm():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Wrapper:
        with _alarm():
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seen = self.outcomes.setdefault(report.nodeid, {"outcome": "passed", "error": ""})
        if report.outcome != "passed":
            seen |= {"outcome": report.outcome, "error": str(report.longrepr)}
        seen["met"] = self.met

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            seen = {"outcome": "failed", "error": str(report.longrepr), "met": False}
            self.outcomes[report.nodeid] = seen


@contextmanager
def _alarm() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {SECONDS_PER_TEST} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS_PER_TEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_here(which: Which, modules: list[str], out: Path) -> int:
    """Run the modules, in the folder that holds `tests`, in this process; give 0 if they ran."""
    sys.path[0] = str(REPOSITORY)  # not our tests, whose names could stand in for theirs
    recorder = Recorder(which)
    options = ["-c", os.devnull, "--rootdir", os.getcwd(), "-p", "no:cacheprovider"]
    options += ["--continue-on-collection-errors", "-q", "--tb=short", "--disable-warnings"]
    options += ["--jaxtyping-packages=transformer_lens,beartype.beartype"]
    code = pytest.main([*options, *modules], plugins=[recorder])
    out.write_text(json.dumps(recorder.outcomes))
    return 0 if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) else int(code)


# -- both runs, compared --------------------------------------------------------------------------


def fetch_tests(source: Path | None, place: Path) -> None:
    """Copy `tests` of an unpacked source distribution, or of the one on PyPI, to `place`."""
    if source is None:
        host = f"transformer-lens=={version('transformer-lens')}"
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "-d", str(place / "sdist"), host], check=True)
        with tarfile.open(next((place / "sdist").glob("*.tar.gz"))) as archive:
            archive.extractall(place / "sdist", filter="data")
        source = next(path for path in (place / "sdist").iterdir() if path.is_dir())
    shutil.copytree(source / "tests", place / "tests")


def choose(place: Path) -> list[str]:
    """Name the modules that meet the class, without those left out."""
    found = sorted((place / "tests").rglob("test_*.py"))
    named = {str(path.relative_to(place)): path.read_text() for path in found}
    return [
        name
        for name, text in named.items()
        if MENTIONS.search(text) and not any(fnmatch(name, pattern) for pattern in LEFT_OUT)
    ]


def run(which: Which, modules: list[str], place: Path) -> Outcomes:
    """Run the modules in a process of their own, offline, and give each test's outcome."""
    out = place / f"{which}.json"
    command = [sys.executable, str(Path(__file__).resolve()), "--run", which, "--out", str(out)]
    settings = {"HF_HOME": str(place / "hf"), "HF_HUB_CACHE": str(place / "hf" / "hub")}
    settings |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    settings |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000", "MPLBACKEND": "agg"}
    env = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "GITHUB_ACTIONS")}
    start, log = time.monotonic(), place / f"{which}.log"
    with log.open("w") as file:
        done = subprocess.run(
            [*command, *modules], cwd=place, env=env | settings, stdout=file, stderr=file
        )
    if done.returncode:
        say(log.read_text()[-3000:])
        raise SystemExit(f"the run with {which} broke off: status {done.returncode}")
    say(f"{which}: {time.monotonic() - start:.0f} s")
    return json.loads(out.read_text())


def compare(theirs: Outcomes, ours: Outcomes) -> bool:
    """Report, and tell whether every difference is an expected one."""
    never = {"outcome": "never ran", "error": "", "met": False}
    pairs = [(name, theirs[name], ours.get(name, never)) for name in theirs]
    counts = Counter((a["outcome"], b["outcome"]) for _, a, b in pairs)
    say(f"\nTransformerLens {version('transformer-lens')}, {len(pairs)} tests: theirs | ours")
    for (a, b), n in sorted(counts.items(), reverse=True):
        say(f"{n:5}  {a} | {b}")
    both = [b for _, a, b in pairs if a["outcome"] == b["outcome"] == "passed"]
    n_met = sum(b["met"] for b in both)
    say(f"{n_met:5}  of those that pass with both use a model, and in our run it is ours")
    _report_failures([p for p in pairs if p[1]["outcome"] == p[2]["outcome"] == "failed"])
    passed = [p for p in pairs if p[1]["outcome"] == "passed"]
    different = [p for p in passed if p[2]["outcome"] != "passed"]
    return _report_differences(different, list(theirs)) and n_met > 0


def _report_failures(both: list[Pair]) -> None:
    downloads = [p for p in both if NEEDS_DOWNLOAD.search(p[0] + p[1]["error"])]
    say(f"\nFail with both: {len(downloads)} need a download, {len(both) - len(downloads)} others")
    for name, a, b in both:
        if (name, a, b) not in downloads:
            say(f"  {name}")
            for line in dict.fromkeys([_first_line(a["error"]), _first_line(b["error"])]):
                say(f"      {line}")


def _report_differences(different: list[Pair], names: list[str]) -> bool:
    say(f"\nPass with theirs only: {len(different)}")
    unexplained, used = 0, set()
    for name, _, b in different:
        fits = [e for e in EXPECTED if fnmatch(name, e[0]) and e[1] in b["error"]]
        used.update(fits)
        unexplained += not fits
        reason = fits[0][2] if fits else "UNEXPLAINED"
        say(f"  {name}\n      {_first_line(b['error'])}\n      {reason}")
    for pattern, _, _ in [e for e in EXPECTED if e not in used]:
        if any(fnmatch(name, pattern) for name in names):
            say(f"Passes now, take it off EXPECTED: {pattern}")
    say(f"{unexplained} unexplained")
    return not unexplained


def _first_line(error: str) -> str:
    lines = error.rstrip().splitlines() or [""]
    marked = [n for n, line in enumerate(lines) if line.startswith("E ")] or [len(lines) - 1]
    first = next(n for n in reversed(marked) if n - 1 not in marked)
    return lines[first].removeprefix("E ").strip()[:160]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", type=Path, help="an unpacked source distribution")
    parser.add_argument("--keep", type=Path, help="work in this new folder, and leave it")
    parser.add_argument("--run", choices=("theirs", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("modules", nargs="*", help="some modules only, as in tests/unit/test_x.py")
    given = parser.parse_args()
    if given.run:
        return run_here(given.run, given.modules, given.out)
    with TemporaryDirectory() as temporary:
        place = given.keep or Path(temporary)
        fetch_tests(given.source, place)
        modules = given.modules or choose(place)
        texts = [(place / module).read_text() for module in choose(place)]
        make_hub(place / "hf" / "hub", texts)
        theirs, ours = (run(which, modules, place) for which in ("theirs", "ours"))
        return 0 if compare(theirs, ours) else 1


if __name__ == "__main__":
    sys.exit(main())

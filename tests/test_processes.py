"""`train` in several processes against the same run in one.

Two processes are started as a user starts them, with torchrun, and only once: importing the package
is what takes the time. Each goes through `in_each_process` and writes what it found as JSON; the
last thing that happens there is that one of them is killed. Here the runs are repeated in one
process and compared. No process can outlive `DEADLINE`.
"""

import faulthandler
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE

from tl_sparse import data
from tl_sparse.checkpoints import read_json
from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.history import History
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.training import train

DEADLINE = 100
"""Seconds after which a process writes where it stands and ends."""

CONFIG = TrainingConfig(
    n_tokens=12 * 8 * 16, batch_size=8, eval_every=4, checkpoint_every=4, n_eval_windows=4
)
"""Twelve steps, with a record and a checkpoint after every fourth."""

SPARSITY = SparsityConfig(
    weight_density=1 / 8, embedding_density=1 / 2, activation_density=1 / 4, bigram_table=True
)

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_processes import in_each_process
in_each_process(Path({folder!r}))
"""


def fresh(corpus: data.Corpus, dtype: torch.dtype = torch.float64) -> HookedSparseTransformer:
    shape = SHAPE | {"d_vocab": corpus.d_vocab, "dtype": dtype}
    return HookedSparseTransformer(shape, sparsity=SPARSITY)


def in_each_process(folder: Path) -> None:
    """What each of the two processes does."""
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    texts = list(data.generate_programs(150, seed=5))
    corpus = data.corpus(texts, vocab_size=400, cache_dir=folder / "cache", progress=False)
    found: dict[str, Any] = {}

    def run(model: HookedSparseTransformer, config: TrainingConfig, name: str) -> Any:
        """Give the records of a run, or what it was refused with."""
        try:
            return train(model, corpus, config, folder=folder / name, progress=False).records
        except (ValueError, KeyboardInterrupt) as error:
            return f"{type(error).__name__}: {error}"

    found["whole"] = run(fresh(corpus), CONFIG, "whole")
    found["float32"] = run(fresh(corpus, torch.float32), CONFIG, "float32")
    halves = replace(CONFIG, gradient_accumulation=2)
    found["accumulated"] = run(fresh(corpus), halves, f"accumulated, process {rank}")
    found["unequal"] = run(fresh(corpus), replace(CONFIG, batch_size=7), "unequal")
    found["not shared"] = run(fresh(corpus), halves, f"accumulated, process {rank}")

    model = fresh(corpus)
    if rank == 1:
        in_step(model, 5, lambda: signal.raise_signal(signal.SIGINT))
    found["interrupted"] = run(model, CONFIG, "interrupted")
    found["step"] = read_json(folder / "interrupted/checkpoint/state.json")["step"]
    found["resumed"] = run(fresh(corpus), CONFIG, "interrupted")
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")

    model = fresh(corpus)
    if rank == 1:
        in_step(model, 6, lambda: signal.raise_signal(signal.SIGKILL))
    run(model, CONFIG, "killed")


def in_step(model: HookedSparseTransformer, n: int, act: Callable[[], None]) -> None:
    """Let something happen in the forward pass of step n, 0 for the first, of this model's run."""
    steps = itertools.count()

    def step(tensor: torch.Tensor, *, hook: Any) -> None:
        if torch.is_grad_enabled() and next(steps) == n:  # no step of a validation
            act()

    model.add_hook("hook_embed", step)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes filled."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(script)], capture_output=True, text=True, env=environment,
        timeout=DEADLINE + 30,
    )  # fmt: skip
    assert (folder / "0.json").exists(), done.stderr
    assert (folder / "1.json").exists(), done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr  # as it was meant to end
    return folder


@pytest.fixture(scope="module")
def found(two: Path) -> list[dict[str, Any]]:
    """What each process found."""
    return [read_json(two / f"{rank}.json") for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(corpus: data.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run in one process."""
    folder = tmp_path_factory.mktemp("one")
    train(fresh(corpus), corpus, CONFIG, folder=folder, progress=False)
    return folder


def without_times(records: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "second" not in k} for record in records]


def assert_same_log(records: Any, expected: Any, rel: float) -> None:
    assert len(records) == len(expected) == 3
    for mine, theirs in zip(without_times(records), without_times(expected), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            close = pytest.approx(value, rel=rel) if isinstance(value, float) else value
            assert mine[key] == close, key


def assert_same_model(folder: Path, expected: Path, atol: float) -> None:
    model, other = (
        HookedSparseTransformer.load(place / "checkpoint/model") for place in (folder, expected)
    )
    for name, mask in other.weight_masks.items():
        assert torch.equal(model.weight_masks[name], mask), name
    for name, parameter in other.named_parameters():
        mine = model.get_parameter(name)
        torch.testing.assert_close(mine, parameter, rtol=0, atol=atol, msg=name)


def test_two_processes_give_the_log_the_weights_and_the_masks_of_one(two, one):
    assert_same_log(History.load(two / "whole").records, History.load(one).records, rel=1e-10)
    assert_same_model(two / "whole", one, atol=1e-10)


def test_every_process_is_given_the_same_history(found):
    assert without_times(found[0]["whole"]) == without_times(found[1]["whole"])


def test_in_float32_the_losses_are_equal_to_its_rounding(two, corpus):
    expected = train(fresh(corpus, torch.float32), corpus, CONFIG, progress=False)
    theirs = History.load(two / "float32")
    for name in ("loss", "validation_loss"):
        assert theirs.column(name) == pytest.approx(expected.column(name), rel=1e-4)


def test_accumulation_in_two_processes_gives_the_same_run(two, one):
    accumulated = two / "accumulated, process 0"
    assert_same_log(History.load(accumulated).records, History.load(one).records, rel=1e-10)
    assert_same_model(accumulated, one, atol=1e-10)


def test_only_the_main_process_writes(two):
    assert (two / "accumulated, process 0/log.jsonl").exists()
    assert not (two / "accumulated, process 1").exists()


def test_a_batch_that_the_processes_cannot_share_is_refused_in_one_line(found):
    for mine in found:
        assert "\n" not in mine["unequal"]
        assert "must be a multiple of the number of processes, got 7 and 2" in mine["unequal"]


def test_a_run_that_only_one_process_can_see_is_not_resumed(found):
    for mine in found:
        assert mine["not shared"].startswith("ValueError: ")
        assert "each must see the same folder" in mine["not shared"]


def test_ctrl_c_in_one_process_stops_both_after_the_same_step_and_they_go_on(two, found):
    for mine in found:
        assert mine["interrupted"].startswith("KeyboardInterrupt")
        assert mine["step"] == 6
        assert without_times(mine["resumed"]) == without_times(mine["whole"])
    assert_same_model(two / "interrupted", two / "whole", atol=0)


def test_a_run_whose_process_was_killed_goes_on_in_one_process(two, one, corpus):
    assert read_json(two / "killed/checkpoint/state.json")["step"] == 4
    history = train(fresh(corpus), corpus, CONFIG, folder=two / "killed", progress=False)
    assert_same_log(history.records, History.load(one).records, rel=1e-10)
    assert_same_model(two / "killed", one, atol=1e-10)

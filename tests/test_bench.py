"""The benchmark: candidates do the same work, in turn, and the numbers are right.

No test looks at how long anything takes: clocks are fake.
"""

import json
import mmap
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_model
from typer.testing import CliRunner

from tl_sparse import bench, cli, tasks
from tl_sparse.ablation import only_circuit, references
from tl_sparse.bench import BenchSettings, Candidate, Measurement, measure, run_bench
from tl_sparse.bench.circuits import letters_task, made_up_circuit
from tl_sparse.bench.demo import Demo
from tl_sparse.bench.kernels import projected, projected_by_scatter, topk_by_scatter
from tl_sparse.bench.linear import dense_product, linear
from tl_sparse.bench.machine import commit
from tl_sparse.bench.memory import measured_here, memory, peak_of
from tl_sparse.bench.plain import PlainTransformer
from tl_sparse.bench.report import TITLES
from tl_sparse.bench.timing import clock_of, quartiles
from tl_sparse.bench.training import (
    NOTHING_SPARSE,
    PLAIN,
    SPARSE,
    dense_step,
    our_model,
    random_tokens,
    stock_model,
    training_candidates,
)
from tl_sparse.circuit import Node
from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig
from tl_sparse.functional import abs_topk
from tl_sparse.products import Products
from tl_sparse.pruning import prune
from tl_sparse.training import next_token_loss

CPU = torch.device("cpu")
TINY = bench.SIZES["tiny"]


class Clock:
    """Time stands still until somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def working(clock: Clock, log: list[str], name: str, times: list[float]) -> Candidate:
    """A candidate that logs its calls, each of which takes the next of its times."""
    left = iter(times)

    def run() -> None:
        log.append(name)
        clock.now += next(left)

    return Candidate(name, lambda: nullcontext(run))


def of(*candidates: Candidate, **rest: Any) -> Measurement:
    return Measurement(kind="training", size="tiny", candidates=candidates, **rest)


# -- the same work ----------------------------------------------------------------------------


def with_random_weights(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "W_pos" in name:
                parameter.zero_()
            else:
                parameter.normal_(std=0.1, generator=generator)
    return model


@pytest.mark.parametrize(
    "build", [stock_model, lambda size, device: our_model(size, device, NOTHING_SPARSE)]
)
def test_plain_pytorch_is_the_network_that_the_others_are(build):
    """Loss and gradients on the same weights: so the baseline does the same work."""
    model, tokens = with_random_weights(build(TINY, CPU)), random_tokens(TINY, CPU)
    plain = PlainTransformer(TINY)
    plain.load_(model)
    own, theirs = plain.loss(tokens), next_token_loss(model(tokens), tokens)
    assert own.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert own.item() > 1.0001 * torch.tensor(float(TINY.d_vocab)).log().item()  # not a flat guess
    own.backward()
    theirs.backward()
    grad = plain.get_parameter("blocks.0.up.weight").grad
    assert grad is not None
    torch.testing.assert_close(grad, model.blocks[0].mlp.W_in.grad.T, rtol=0, atol=1e-6)
    qkv = plain.get_parameter("blocks.0.qkv.weight").grad
    w_k = model.blocks[0].attn.W_K.grad.transpose(1, 2).flatten(0, 1)
    assert qkv is not None
    torch.testing.assert_close(qkv[128:256], w_k, rtol=0, atol=1e-6)


def test_a_step_of_ours_projects_every_matrix_and_trains_everything():
    by_name = {one.name: one for one in training_candidates(TINY, CPU)}
    for name, sparsity in SPARSE.items():
        with by_name[f"ours, {name}"].prepare() as run:
            model = run.__self__.model  # pyright: ignore[reportFunctionMemberAccess]
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            run()
            run()
            W_in = model.blocks[0].mlp.W_in
            assert int((W_in != 0).sum()) == int(sparsity.weight_density * W_in.numel())
            assert model.sparsity == sparsity
            assert {sparsity.site_density(s) for s in ("q", "mlp_neuron", "attn_in")} == {0.25}
            assert model.cfg.use_attention_sinks
            for n, p in model.named_parameters():
                assert "W_pos" in n or not torch.equal(p, before[n]), n


def test_the_dense_steps_train():
    by_name = {one.name: one for one in training_candidates(TINY, CPU)}
    tokens, kept = random_tokens(TINY, CPU), []

    class Watched(PlainTransformer):
        def loss(self, tokens):
            kept.append(super().loss(tokens))
            return kept[-1]

    with dense_step(lambda: Watched(TINY), Watched.loss, tokens) as run:
        for _ in range(5):
            run()
    losses = [loss.item() for loss in kept]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]
    assert next(iter(by_name)) == PLAIN


def test_both_ways_keep_the_same_entries():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 96, generator=generator)
    assert torch.equal(projected(weight, 200), projected_by_scatter(weight, 200))
    guarded = projected(weight, 96 * 4 + 10, min_alive=4)
    assert int((guarded != 0).sum()) == 96 * 4 + 10
    assert int((guarded != 0).sum(0).min()) == 4
    x = torch.randn(5, 7, 64, generator=generator, requires_grad=True)
    gradient = torch.randn(5, 7, 64, generator=generator)
    outs = [way(x, 16) for way in (abs_topk, topk_by_scatter)]
    back = [torch.autograd.grad(out, x, gradient)[0] for out in outs]
    assert torch.equal(*outs)
    assert torch.equal(*back)
    assert int((back[0] != 0).sum()) == 5 * 7 * 16


def test_the_products_of_a_block_are_those_of_torch_and_ours_from_live_weights(monkeypatch):
    seen: list[Any] = []

    def noted(way):
        return lambda *call: seen.append((call, way(*call))) or seen[-1][1]

    ours = Products("sparse")  # "auto" makes none of this size
    monkeypatch.setattr("tl_sparse.bench.linear.dense_product", noted(dense_product))
    monkeypatch.setattr("tl_sparse.bench.linear.Products", lambda path: noted(ours))
    densities = [1 / 64, 1 / 32, 1 / 16, 1 / 4, 1] * 2
    for density, one in zip(densities, linear(TINY, CPU), strict=True):
        seen.clear()
        ours.found.clear()
        for candidate in one.candidates:
            with candidate.prepare() as run:
                run()
        shapes = [(*x.shape, y.shape[-1]) for (_, x, _, _), y in seen]
        n = TINY.n_tokens
        assert shapes == [(n, 128, 384), (n, 128, 128), (n, 128, 128), (n, 128, 128)] * 2
        assert sorted(ours.found) == ["in", "o", "out", "qkv"]
        for (call, y), (_, again) in zip(seen[:4], seen[4:], strict=True):
            assert int((call[2] != 0).sum()) == int(density * call[2].numel())
            assert y.requires_grad == ("backward" in one.case)
            torch.testing.assert_close(y, again, atol=1e-4, rtol=1e-5)


def test_the_made_up_circuit_is_one_and_compiled_it_answers_as_in_the_model():
    task = letters_task(TINY)
    model = our_model(TINY, CPU, SPARSE["density 1/64"])
    circuit = made_up_circuit(model, task)
    assert circuit.n_edges == 6
    assert Node.parse(str(circuit.nodes[0])) == circuit.nodes[0]
    heads = {n.channel // 16 for n in circuit.nodes if n.site.name in ("q", "k", "v")}
    assert len(heads) == 1
    batch = task.batch("train")
    assert len(batch.tokens) == TINY.n_prompts
    found = circuit.compile(model, max_rivals=1.0)(batch.tokens, batch.last)
    with only_circuit(model, circuit), torch.no_grad():
        logits = task.logits(model, batch)[:, list(task.answer_ids.values())]
    close = (found - logits).abs().amax(-1) < 1e-5
    assert close.float().mean() > 0.9  # near ties of AbsTopK can fall either way


# -- a finished demo --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(quote_corpus, tmp_path_factory):
    """What a finished demo leaves of its sparse arm, of a model that has learned nothing."""
    folder = tmp_path_factory.mktemp("demo")
    model = make_model(
        SparsityConfig(weight_density=0.2, activation_density=0.5), d_vocab=quote_corpus.d_vocab,
        n_ctx=64, positional_embedding_type="none", default_prepend_bos=False,
    )  # fmt: skip
    model.set_tokenizer(quote_corpus.tokenizer)
    model.save(folder / "sparse/checkpoint/model")
    task = tasks.get("single_double_quote", tokenizer=model.tokenizer)
    loss = task.loss(task.logits(model, task.batch("test")), task.batch("test")).item()
    config = PruningConfig(
        n_steps=2, edges=False, drop_one=False, batch_size=4, target_loss=loss, min_accuracy=0.0
    )
    circuit = prune(model, task, references(model, quote_corpus, 512), config, progress=False)
    assert circuit.nodes
    circuit.save(folder / "sparse/circuit.json")
    return folder, model, task, circuit


def test_the_demos_circuit_is_pruned_anew_as_the_demo_did(finished):
    folder, _, _, circuit = finished
    (one,) = Demo.open(folder).pruning(CPU)
    assert [candidate.name for candidate in one.candidates] == [
        "model on the validation pairs", "prune"
    ]  # fmt: skip
    with one.candidates[1].prepare() as run:
        assert run().to_json() == circuit.to_json()


def test_the_demos_answers_are_those_of_its_model_and_circuit(finished):
    folder, model, task, circuit = finished
    (one,) = Demo.open(folder).compiled(CPU)
    assert one.case == f"single_double_quote, {circuit.n_edges} edges"
    batch = task.batch("train", range(0, 1024, 2))
    ids = list(task.answer_ids.values())
    with torch.no_grad(), model.using_attention("auto"):
        expected = {"model": task.logits(model, batch)[:, ids]}
    with torch.no_grad(), only_circuit(model, circuit):
        expected["model, circuit alone"] = task.logits(model, batch)[:, ids]
    expected["compiled circuit"] = expected["model, circuit alone"]
    with ExitStack() as stack:  # all at once, as `measure` runs them
        runs = {c.name: stack.enter_context(c.prepare()) for c in one.candidates}
        found = {name: run() for name, run in runs.items()}
    assert list(found) == list(expected)
    for name, logits in found.items():
        logits = logits if name == "compiled circuit" else logits[:, ids]
        close = (logits - expected[name]).abs().amax(-1) < 1e-4
        assert close.float().mean() > 0.99  # near ties of AbsTopK can fall either way
        assert len(close) == 1024


def test_a_folder_without_a_finished_demo_is_refused(finished, tmp_path):
    folder, _, _, circuit = finished
    with pytest.raises(ValueError, match=r"has no sparse/checkpoint/model. Run `tl-sparse demo"):
        BenchSettings(demo=tmp_path / "nowhere")
    copy = tmp_path / "copy"
    copytree(folder, copy)
    (copy / "sparse/circuit.json").unlink()
    with pytest.raises(ValueError, match=r"has no sparse/circuit\.json"):
        BenchSettings(demo=copy)
    replace(circuit, model_hash="another").save(copy / "sparse/circuit.json")
    with pytest.raises(ValueError, match="was found in another model"):
        Demo.open(copy)
    with pytest.raises(ValueError, match="pruning and compiled are measured, and only asks for"):
        BenchSettings(demo=folder, only=("memory",))
    assert BenchSettings(demo=folder).to_dict()["demo"] == str(folder)


def test_the_command_measures_the_demo_beside_the_sizes(finished, tmp_path, monkeypatch):
    nothing = of(Candidate("a", lambda: nullcontext(lambda: 1.0)), unit="MB")
    for kind in ("training", "compiled", "pruning"):
        one = replace(nothing, kind=kind)
        monkeypatch.setitem(bench.KINDS, kind, lambda size, device, one=one: [one])
    monkeypatch.setattr("tl_sparse.bench.demo.prune", lambda *a, **kw: None)
    out = tmp_path / "b.json"
    rest = ["--demo", finished[0], "--repeats", 1, "--quiet", "--out", out]
    done = command("--sizes", "tiny", "--only", "compiled,training,pruning", *rest)
    assert done.code == 0, done.text
    written = json.loads(out.read_text())
    labels = [f"{m['kind']} {m['size']}" for m in written["measurements"]]
    assert labels == ["compiled tiny", "compiled demo", "training tiny", "pruning tiny",
                      "pruning demo"]  # fmt: skip
    assert all(len(c["values"]) == 1 for m in written["measurements"] for c in m["candidates"])
    assert "| demo | single_double_quote, the whole call | prune |" in done.text
    assert f"- demo: the sparse model, task and circuit of {finished[0]}" in done.text
    absent = command("--demo", tmp_path / "nowhere", "--out", tmp_path / "c.json")
    assert (absent.code, absent.text[:41]) == (1, "Error: demo is the folder of a finished d")
    assert not (tmp_path / "c.json").exists()


# -- the order and the numbers ----------------------------------------------------------------


def test_candidates_run_in_turn_after_one_call_to_warm_up():
    clock, log = Clock(), []
    three = [working(clock, log, name, [1.0] * 5) for name in "abc"]
    result = measure(of(*three), repeats=4, seconds=1e9, clock=clock)
    assert "".join(log) == "abc" + "abc" * 4
    assert result.values == {name: [1.0] * 4 for name in "abc"}


def test_ratios_are_taken_round_by_round_and_quartiles_are_right():
    clock: Clock = Clock()
    # The machine slows down fourfold; b takes twice as long as a in all rounds but one.
    base = working(clock, [], "a", [9.0, 1.0, 2.0, 3.0, 4.0, 4.0])
    other = working(clock, [], "b", [9.0, 2.0, 4.0, 6.0, 8.0, 12.0])
    result = measure(of(base, other), repeats=5, seconds=1e9, clock=clock)
    a, b = result.rows()
    assert a.value == (2.0, 3.0, 4.0)
    assert a.ratio == (1.0, 1.0, 1.0)
    assert b.value == (4.0, 6.0, 8.0)
    assert b.ratio == (2.0, 2.0, 2.0)
    assert quartiles([2.0, 2.0, 2.0, 2.0, 3.0, 4.0]) == (2.0, 2.0, 2.75)
    written = result.to_dict()["candidates"][1]
    assert written["values"] == [2.0, 4.0, 6.0, 8.0, 12.0]
    assert (written["ratio"], written["ratio_quartiles"], written["calls"]) == (2.0, [2.0, 2.0], 1)
    assert (written["median"], written["quartiles"]) == (6.0, [4.0, 8.0])


def test_short_work_is_called_several_times_and_values_are_per_unit_of_work():
    clock, log = Clock(), []
    quick = working(clock, log, "a", [0.0005] * 100)
    four = Candidate("b", working(clock, log, "b", [8.0] * 9).prepare, n_units=4)
    result = measure(of(quick, four), repeats=3, seconds=1e9, clock=clock)
    assert result.calls == {"a": 4, "b": 1}
    assert "".join(log) == "aa" + "b" + "aaaab" * 3
    assert result.values["a"] == pytest.approx([0.0005] * 3)
    assert result.values["b"] == pytest.approx([2.0] * 3)


def test_the_budget_ends_the_rounds_but_three_are_run():
    clock = Clock()
    slow = working(clock, [], "a", [10.0] * 50)
    assert len(measure(of(slow), repeats=40, seconds=1.0, clock=clock).values["a"]) == 3
    slow = working(clock, [], "a", [10.0] * 50)
    assert len(measure(of(slow), repeats=40, seconds=75.0, clock=clock).values["a"]) == 8
    slow = working(clock, [], "a", [10.0] * 50)
    assert len(measure(of(slow), repeats=2, seconds=75.0, clock=clock).values["a"]) == 2
    slow = working(clock, [], "a", [10.0] * 50)
    capped = of(slow, max_rounds=1)
    assert len(measure(capped, repeats=9, seconds=75.0, clock=clock).values["a"]) == 1


def test_on_a_gpu_the_clock_waits_for_the_work_in_hand(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(str(device)))
    clock = clock_of(torch.device("cuda"))
    assert clock() <= clock()
    assert log == ["cuda", "cuda"]


def test_what_is_not_timed_gives_its_own_value_once_without_warming_up():
    given = iter([5.0, 7.0])
    sizes = [Candidate(n, lambda: nullcontext(lambda: next(given))) for n in "ab"]
    result = measure(of(*sizes, unit="MB", max_rounds=1), repeats=9, seconds=9.0, clock=Clock())
    assert result.values == {"a": [5.0], "b": [7.0]}


def stopping(clock: Clock, after: int, error: BaseException, closed: list[str]) -> Candidate:
    """A candidate that ends in an error after so many calls."""

    @contextmanager
    def prepare():
        left = iter(range(after))

        def run() -> None:
            if next(left, None) is None:
                raise error
            clock.now += 1

        try:
            yield run
        finally:
            closed.append("closed")

    return Candidate("b", prepare)


def test_ctrl_c_keeps_what_there_is(tmp_path, monkeypatch):
    clock, closed = Clock(), []
    monkeypatch.setattr("tl_sparse.bench.run.clock_of", lambda device: clock)
    a, c = (working(clock, [], name, [1.0] * 9) for name in "ac")
    before, after = of(c, case="before"), of(c, case="after")
    cut = of(a, stopping(clock, 3, KeyboardInterrupt(), closed), case="cut")
    settings = BenchSettings(out=tmp_path / "b.json", repeats=5)
    report = run_bench(settings, measurements=[before, cut, after], progress=False)
    assert closed == ["closed"]
    assert report.interrupted
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["interrupted"] is True
    assert [m["case"] for m in written["measurements"]] == ["before", "cut"]
    n_values = [len(c["values"]) for c in written["measurements"][1]["candidates"]]
    assert n_values == [3, 2]  # one to warm up, two rounds, and stopped in the third
    assert written["measurements"][1]["candidates"][1]["ratio"] == 1
    assert "stopped by Ctrl-C" in (tmp_path / "b.md").read_text()
    assert "interrupted" in (tmp_path / "b.md").read_text()


def test_want_of_memory_is_noted_and_other_errors_are_not_hidden():
    clock, closed = Clock(), []
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")):
        candidate = stopping(clock, 2, error, closed)
        full = measure(of(candidate), repeats=3, seconds=9.0, clock=clock)
        assert (full.note, len(full.values["b"])) == ("out of memory", 1)
    broken = stopping(clock, 2, RuntimeError("something else"), closed)
    with pytest.raises(RuntimeError, match="something else"):
        measure(of(broken), repeats=3, seconds=9.0, clock=clock)
    assert closed == ["closed"] * 3


# -- memory -----------------------------------------------------------------------------------


def test_memory_has_a_candidate_for_each_training_step(monkeypatch):
    asked = []
    monkeypatch.setattr("tl_sparse.bench.memory.peak_of", lambda *a: asked.append(a) or 12.0)
    (one,) = memory(TINY, CPU)
    result = measure(one, repeats=5, seconds=9.0, clock=Clock())
    names = [c.name for c in training_candidates(TINY, CPU)]
    assert result.values == {name: [12.0] for name in names}
    assert [name for _, _, name in asked] == names


def test_the_peak_of_a_step_is_at_least_what_it_keeps_and_that_of_its_own_process():
    held = torch.ones(50_000_000)  # 200 MB of ours, which a child must not be charged with
    n_parameters = sum(p.numel() for p in PlainTransformer(TINY).parameters())
    kept = 4 * 4 * n_parameters / 1e6  # weights, gradients and two moments, in megabytes
    assert kept < peak_of(TINY, CPU, PLAIN) < 150
    assert held.numel() * 4 / 1e6 == 200


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [(1, RuntimeError, "x failed at the size tiny:\nwhy"), (-9, MemoryError, "x was killed")],
)
def test_a_process_that_fails_is_an_error(code, error, message, monkeypatch):
    failed = SimpleNamespace(returncode=code, stderr="why", stdout="")
    monkeypatch.setattr("tl_sparse.bench.memory.subprocess.run", lambda *a, **kw: failed)
    with pytest.raises(error, match=message):
        peak_of(TINY, CPU, "x")


def test_the_peak_counts_what_was_freed_again(monkeypatch):
    def work() -> None:
        with mmap.mmap(-1, 100_000_000) as held:  # past the allocator, which keeps what was freed
            for place in range(0, len(held), mmap.PAGESIZE):
                held[place] = 1

    steps = (Candidate("big", lambda: nullcontext(work)),)
    monkeypatch.setattr("tl_sparse.bench.memory.training_candidates", lambda *a: steps)
    assert 95 < measured_here(TINY, CPU, "big") < 150


# -- settings and the command -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"only": ("speed",)}, r"only takes names out of training, .*; got 'speed'"),
        ({"only": ()}, r"only is a tuple of names, at least one, got \(\)"),
        ({"sizes": ("huge",)}, r"sizes takes names out of tiny, small, paper, large, wide; got"),
        ({"sizes": ("tiny", "tiny")}, r"each name once, got 'tiny' twice"),
        ({"sizes": "tiny"}, r"sizes is a tuple of names, at least one, got 'tiny'"),
        ({"repeats": 0}, r"repeats is a positive finite integer, got 0"),
        ({"seconds": -1.0}, r"seconds is a positive finite number, got -1.0"),
        ({"threads": 0}, r"threads is a positive finite integer or None, got 0"),
        ({"device": "tpu"}, r"device is one of 'auto', 'cpu', 'cuda', got 'tpu'"),
        ({"out": "bench.md"}, r"out is a file whose name ends in .json, got 'bench.md'.*Try"),
    ],
)
def test_settings_that_cant_work_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        BenchSettings(**given)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a GPU that this torch can use"):
        BenchSettings(device="cuda")
    assert BenchSettings(seconds=3).resolved_device() == CPU


def test_every_kind_has_a_title_and_its_measurements_a_baseline_of_their_own():
    assert tuple(bench.KINDS) == BenchSettings().only == tuple(TITLES)
    for kind, make in bench.KINDS.items():
        for size in bench.SIZES.values():
            some = make(size, CPU)
            assert {(one.kind, one.size) for one in some} == {(kind, size.name)}
            assert len({one.case for one in some}) == len(some)
            for one in some:
                names = [c.name for c in one.candidates]
                assert len(set(names)) == len(names) >= 2


def command(*arguments: Any) -> SimpleNamespace:
    result = CliRunner().invoke(cli.app, ["bench", *map(str, arguments)], env={"COLUMNS": "100"})
    return SimpleNamespace(code=result.exit_code, text=result.output)


def test_the_command_writes_raw_times_and_a_table(tmp_path):
    out, before = tmp_path / "deep" / "b.json", torch.get_num_threads()
    kinds = ["training", "inference", "projection", "abstopk", "pruning", "compiled"]
    rest = ["--repeats", 2, "--seconds", 0.01, "--threads", 1, "--device", "cpu", "--quiet"]
    done = command("--sizes", "tiny", "--only", ",".join(kinds), *rest, "--out", out)
    assert done.code == 0, done.text
    assert torch.get_num_threads() == before
    written = json.loads(out.read_text())
    assert list(dict.fromkeys(m["kind"] for m in written["measurements"])) == kinds
    assert written["machine"]["threads"] == 1
    assert written["machine"]["versions"]["torch"] == torch.__version__
    assert written["machine"]["commit"] == commit()
    assert written["settings"]["sizes"] == ["tiny"]
    for measurement in written["measurements"]:
        assert measurement["note"] == ""
        assert measurement["candidates"][0]["name"] == measurement["baseline"]
        assert measurement["candidates"][0]["ratio"] == 1
        assert all(len(c["values"]) == 2 for c in measurement["candidates"])
    table = out.with_suffix(".md").read_text()
    assert table in done.text
    assert "## Training step" in table
    n_rows = sum(len(m["candidates"]) for m in written["measurements"])
    assert sum(line.startswith("| tiny |") for line in table.splitlines()) == n_rows


def test_the_command_audits(tmp_path, monkeypatch):
    few = AuditConfig(
        n_random=2, n_subsets=2, n_adversarial_steps=2, n_examples=4, max_edges=2, max_nodes=4
    )
    monkeypatch.setattr(AuditConfig, "quick", classmethod(lambda cls: few))
    one = {"density 1/64": SPARSE["density 1/64"]}
    monkeypatch.setattr("tl_sparse.bench.circuits.CIRCUIT_DENSITIES", one)
    out = tmp_path / "a.json"
    done = command("--sizes", "tiny", "--only", "audit", "--repeats", 1, "--quiet", "--out", out)
    assert done.code == 0, done.text
    (written,) = json.loads(out.read_text())["measurements"]
    assert (written["case"], written["baseline"]) == ("density 1/64", "model on the test pairs")
    assert [c["name"] for c in written["candidates"]][1:] == ["quick audit"]


def test_the_command_says_what_is_wrong_before_any_work(tmp_path):
    out = tmp_path / "b.json"
    wrong = command("--sizes", "huge", "--out", out)
    assert (wrong.code, wrong.text[:40]) == (1, "Error: sizes takes names out of tiny, sm")
    assert not out.exists()


def test_the_command_ends_with_what_it_has_on_ctrl_c(tmp_path, monkeypatch):
    def stop(size: Any, device: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(bench.KINDS, "training", stop)
    out = tmp_path / "b.json"
    stopped = command("--sizes", "tiny", "--only", "training", "--quiet", "--out", out)
    assert stopped.code == 130
    assert json.loads(out.read_text())["interrupted"] is True

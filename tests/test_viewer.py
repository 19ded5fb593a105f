"""The viewer's numbers against plain runs of the model, and its page against hostile texts."""

import base64
import hashlib
import json
import re
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import make_model
from test_report import HOSTILE, HostileTokens, some_circuit
from typer.testing import CliRunner

import tl_sparse.zoo
from tl_sparse import viewer
from tl_sparse.ablation import only_circuit
from tl_sparse.auditing import AuditReport, Finding
from tl_sparse.circuit import Circuit, Edge, Node
from tl_sparse.cli import app
from tl_sparse.sites import site_map
from tl_sparse.tasks.base import Pair, PairTask, Split
from tl_sparse.viewer.page import in_script
from tl_sparse.viewer.serving import server
from tl_sparse.viewer.worth import MAX_SIZES

EDGES = [
    ("0.attn_in.1", "0.v.3", 1.5),
    ("0.attn_in.2", "0.v.3", -1.0),
    ("0.attn_in.4", "0.k.2", 0.8),
    ("0.v.3", "0.attn_out.5", 1.2),
    ("1.mlp_in.5", "1.mlp_neuron.7", 0.9),
    ("1.mlp_neuron.7", "1.mlp_out.6", -1.1),
]


class Hostile(HostileTokens):
    padding_side = "right"


class Letters:
    """Token i is the i-th letter."""

    padding_side = "right"
    texts = "abcdefghijklmnopqrstuvwxyz"

    def encode(self, text, add_special_tokens=False):
        return [self.texts.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.texts[i] if i < 26 else f"<{i}>" for i in ids)


def letter_task() -> PairTask:
    def pairs(start, n):
        words = [
            Letters.texts[i : i + 3] + Letters.texts[(7 * i) % 20] for i in range(start, start + n)
        ]
        return [Pair((f"a{word}", f"b{word}"), ("x", "y")) for word in words]

    splits: dict[Split, list[Pair]] = {
        "train": pairs(0, 6),
        "validation": pairs(6, 6),
        "test": pairs(12, 6),
    }
    return PairTask("letters", splits, tokenizer=Letters())


@pytest.fixture(scope="module")
def model():
    made: Any = make_model(None, n_ctx=16)
    made.tokenizer = Letters()
    return made


@pytest.fixture(scope="module")
def task():
    return letter_task()


@pytest.fixture(scope="module")
def circuit(model):
    found = some_circuit(model, EDGES, task="letters", target_loss=0.3)
    references = {
        site: tuple(0.01 * (i % 7) for i in range(len(some)))
        for site, some in found.references.items()
    }
    return replace(found, references=references, labels={"0.v.3": "what follows"})


@pytest.fixture(scope="module")
def seen(model, circuit, task):
    return viewer.scene(model, circuit, task, progress=False, n_pairs=3)


def loss_of(model, circuit, task) -> float:
    batch = task.batch("test")
    with torch.no_grad(), only_circuit(model, circuit):
        logits = model(batch.tokens)[torch.arange(len(batch.last)), batch.last]
    return task.loss(logits, batch).item()


def smaller(circuit: Circuit, edges) -> Circuit:
    """The circuit with some of its edges, and what they join."""
    return replace(circuit, edges=tuple(edges))


def test_an_edge_is_worth_how_far_the_loss_rises_without_it(model, circuit, task, seen):
    whole = loss_of(model, circuit, task)
    assert seen.data["losses"]["circuit"] == pytest.approx(whole, abs=1e-5)
    for edge in seen.data["edges"]:
        rest = [
            e
            for e in circuit.edges
            if (str(e.source), str(e.target)) != (edge["source"], edge["target"])
        ]
        without = loss_of(model, smaller(circuit, rest), task)
        assert edge["worth"] == pytest.approx(without - whole, abs=1e-5)


def test_a_node_is_worth_how_far_both_losses_rise_without_it(model, circuit, task, seen):
    whole = loss_of(model, circuit, task)
    batch = task.batch("test")
    sites = site_map(model)
    for about in seen.data["nodes"]:
        node = Node.parse(about["id"])
        edges = [e for e in circuit.edges if node not in (e.source, e.target)]
        nodes = tuple(n for n in circuit.nodes if n != node)
        without = loss_of(model, replace(circuit, nodes=nodes, edges=tuple(edges), labels={}), task)
        assert about["worth"] == pytest.approx(without - whole, abs=1e-5)

        def held(activation, hook, node=node):
            activation.flatten(2)[..., node.channel] = circuit.references[node.site][node.channel]
            return activation

        with torch.no_grad(), model.hooks(fwd_hooks=[(sites[node.site].hook_name, held)]):
            cut = model(batch.tokens)[torch.arange(len(batch.last)), batch.last]
        with torch.no_grad():
            free = model(batch.tokens)[torch.arange(len(batch.last)), batch.last]
        rise = task.loss(cut, batch).item() - task.loss(free, batch).item()
        assert about["worth_in_model"] == pytest.approx(rise, abs=1e-5)


def test_each_size_is_a_circuit_with_the_edges_that_are_worth_most(model, circuit, task, seen):
    sizes, edges = seen.data["sizes"], seen.data["edges"]
    assert [n for n, _ in sizes] == sorted({n for n, _ in sizes})
    assert sizes[-1][0] == circuit.n_edges
    by_ends = {(str(e.source), str(e.target)): e for e in circuit.edges}
    for place, (n, loss) in enumerate(sizes):
        some = [by_ends[e["source"], e["target"]] for e in edges if e["enters"] <= place]
        assert len(some) == n
        assert loss == pytest.approx(loss_of(model, smaller(circuit, some), task), abs=1e-5)


def test_of_many_edges_few_sizes_are_judged(model, task):
    many = [(f"0.attn_in.{i}", f"0.v.{j}", 0.3) for i in range(8) for j in range(4)]
    many += [(f"0.v.{j}", "0.attn_out.5", 0.5) for j in range(4)]
    large = some_circuit(make_model(None, n_ctx=16), [], task="letters")
    other: Any = make_model(None, n_ctx=16)
    other.tokenizer = Letters()
    large = some_circuit(other, many, task="letters")
    sizes = viewer.scene(other, large, task, progress=False).data["sizes"]
    assert len(sizes) <= MAX_SIZES
    assert sizes[-1][0] == 36


def unrounded(line):
    return [value * line["scale"] / 127 for value in line["values"]]


def test_values_on_prompts_are_those_while_the_circuit_runs_alone(model, circuit, task, seen):
    prompts = seen.data["prompts"]
    texts = seen.data["texts"]
    assert len(prompts) == 6
    for i, prompt in enumerate(prompts):
        text = "".join(texts[place] for place in prompt["tokens"])
        assert text[0] == "ab"[i % 2]
        assert prompt["answer"] == "xy"[i % 2]
        tokens = torch.tensor([Letters().encode(text)])
        with torch.no_grad(), only_circuit(model, circuit):
            logits, cache = model.run_with_cache(tokens)
        right, wrong = (23, 24) if i % 2 == 0 else (24, 23)
        margin = (logits[0, -1, right] - logits[0, -1, wrong]).item()
        assert prompt["margin"] == pytest.approx(margin, abs=1e-4)
        for about in seen.data["nodes"]:
            node = Node.parse(about["id"])
            name = site_map(model)[node.site].hook_name
            values = cache[name][0].flatten(1)[:, node.channel].tolist()
            line = about["prompts"][i]
            assert unrounded(line) == pytest.approx(values, abs=line["scale"] / 127 + 1e-6)


def test_patterns_are_those_while_the_circuit_runs_alone(model, circuit, seen):
    prompt, texts = seen.data["prompts"][0], seen.data["texts"]
    tokens = torch.tensor([Letters().encode("".join(texts[place] for place in prompt["tokens"]))])
    (head,) = seen.data["patterns"]
    assert (head["layer"], head["head"]) == (0, 0)
    with torch.no_grad(), only_circuit(model, circuit):
        _, cache = model.run_with_cache(tokens)
    pattern = cache["blocks.0.attn.hook_pattern"][0, 0]
    n = tokens.shape[1]
    flat = [pattern[i, j].item() for i in range(n) for j in range(i + 1)]
    assert [x / 100 for x in head["patterns"][0]] == pytest.approx(flat, abs=0.0051)


def test_examples_are_the_highest_and_lowest_places_of_the_text(quote_corpus):
    model: Any = make_model(None, d_vocab=quote_corpus.d_vocab, n_ctx=16)
    model.tokenizer = quote_corpus.tokenizer
    circuit = some_circuit(model, EDGES[:4], task="quotes")
    words = ["say", "call", "print"]
    words_of: dict[Split, str] = {"train": "a", "validation": "b", "test": "c"}
    splits: dict[Split, list[Pair]] = {
        split: [Pair((f"{w}('{x}", f'{w}("{x}'), ("')", '")')) for w in words]
        for split, x in words_of.items()
    }
    task = PairTask("quotes", splits, tokenizer=quote_corpus.tokenizer)
    seen = viewer.scene(
        model, circuit, task, quote_corpus, n_windows=20, n_examples=2, progress=False
    )
    windows = quote_corpus.validation.windows(n_ctx=16, n_windows=20)
    with torch.no_grad():
        _, cache = model.run_with_cache(windows)
    for about in seen.data["nodes"]:
        node = Node.parse(about["id"])
        values = cache[site_map(model)[node.site].hook_name].flatten(2)[..., node.channel]
        for side, sign in (("highest", 1), ("lowest", -1)):
            peaks = (sign * values).amax(1)
            best = sorted(range(20), key=lambda i: -float(peaks[i]))[:2]
            shown = about["examples"][side]
            assert [e["value"] for e in shown] == pytest.approx(
                [sign * float(peaks[i]) for i in best], abs=1e-4
            )
            at = int((sign * values[best[0]]).argmax())
            token = quote_corpus.tokenizer.decode([int(windows[best[0], at])])
            place = shown[0]["tokens"][shown[0]["at"]]
            assert seen.data["texts"][place] == token.replace("\n", "\\n")


def test_a_circuit_found_by_resampling_is_shown_in_its_model(model, circuit, task):
    resampled = replace(circuit, references={}, ablation="resample_pair")
    data = viewer.scene(model, resampled, task, progress=False).data
    assert all(node["reference"] is None for node in data["nodes"])
    prompt = "".join(data["texts"][place] for place in data["prompts"][0]["tokens"])
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([Letters().encode(prompt)]))
    about = next(node for node in data["nodes"] if node["id"] == "0.v.3")
    values = cache["blocks.0.attn.hook_v"][0].flatten(1)[:, 3].tolist()
    line = about["prompts"][0]
    assert unrounded(line) == pytest.approx(values, abs=line["scale"] / 127 + 1e-6)


def test_what_touches_a_circuit_is_counted_in_the_model(model, circuit, task):
    """A circuit made of others has no counts of its own."""
    half = smaller(circuit, circuit.edges[::2])
    both = half | circuit
    assert (both.n_interface, both.n_biases) == (0, 0)
    data = viewer.scene(model, both, task, progress=False).data
    reads = {n.channel for n in both.nodes if n.site.name in ("attn_in", "mlp_in")}
    writes = {n.channel for n in both.nodes if n.site.name in ("attn_out", "mlp_out")}
    entries = [*model.W_E[:, sorted(reads)].flatten(), *model.W_U[sorted(writes)].flatten()]
    assert data["n_interface"] == sum(bool(entry) for entry in entries) > 0
    attention, mlp = model.blocks[0].attn, model.blocks[1].mlp
    biases = (
        attention.b_K.flatten()[2], attention.b_V.flatten()[3], attention.b_O[5],
        mlp.b_in[7], mlp.b_out[6],
    )  # fmt: skip
    assert data["n_biases"] == sum(bool(bias) for bias in biases) == 5


# -- what is refused --------------------------------------------------------------------------


def test_what_does_not_belong_together_is_refused(model, circuit, task):
    other = PairTask(
        "others", {s: task.pairs[s] for s in ("train", "validation", "test")}, tokenizer=Letters()
    )
    with pytest.raises(ValueError, match="found on the task 'letters'"):
        viewer.scene(model, circuit, other, progress=False)
    report = AuditReport(
        "letters", (), provenance={"model": circuit.model_hash, "n_nodes": 1, "n_edges": 2}
    )
    with pytest.raises(ValueError, match="audit is of another circuit"):
        viewer.scene(model, circuit, task, report=report, progress=False)
    with pytest.raises(ValueError, match="another model"):
        viewer.scene(
            make_model(None, n_ctx=16, seed=5),
            replace(circuit, model_hash="x"),
            task,
            progress=False,
        )
    empty = replace(circuit, nodes=(), edges=(), labels={})
    with pytest.raises(ValueError, match="no node"):
        viewer.scene(model, empty, task, progress=False)
    with pytest.raises(ValueError, match="n_pairs"):
        viewer.scene(model, circuit, task, n_pairs=0, progress=False)
    latents = replace(circuit, provenance={"saes": {}})
    with pytest.raises(ValueError, match="SAE latents"):
        viewer.scene(model, latents, task, progress=False)


# -- the page ---------------------------------------------------------------------------------


def data_of(page: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


def test_the_page_has_the_data_and_runs_its_one_script_alone(seen):
    page = viewer.viewer_page(seen)
    assert data_of(page)["scenes"] == [dict(seen.data) | {"title": "letters"}]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", page)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b|DOMParser", page)


def hostile_scene() -> viewer.Scene:
    """A circuit whose task, prompts, answers, labels and findings are hostile."""
    model: Any = make_model(None, d_vocab=len(HostileTokens.texts), n_ctx=16)
    model.tokenizer = Hostile()
    circuit = some_circuit(model, EDGES, task=HOSTILE)
    prompts: dict[Split, str] = {"train": "ab", "validation": "ba", "test": "aab"}
    splits: dict[Split, list[Pair]] = {
        s: [Pair((HOSTILE + x, "<b>" + x), ("\0", "\u202e"))] for s, x in prompts.items()
    }
    task = PairTask(HOSTILE, splits, tokenizer=Hostile())
    circuit = replace(circuit, labels={"0.v.3": HOSTILE}, groups={"0.v.3": HOSTILE})
    finding = Finding("necessary", HOSTILE, 1.0, 0.5, at_most=False, why=HOSTILE)
    about = {"model": circuit.model_hash, "n_nodes": circuit.n_nodes, "n_edges": circuit.n_edges}
    report = AuditReport(HOSTILE, (finding,), provenance=about)
    return viewer.scene(model, circuit, task, report=report, progress=False)


def test_hostile_texts_end_no_element():
    page = viewer.viewer_page(hostile_scene())
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "\u202e" not in page
    assert "\0" not in page
    assert "<img" not in page
    scene = data_of(page)["scenes"][0]
    assert scene["labels"] == {"0.v.3": HOSTILE}
    assert scene["title"] == HOSTILE


def test_json_in_a_script_element_reads_back():
    data = {"a": "</script><!--<script>&", "b": [1, 2.5, None, "\u2028\0"]}
    text = in_script(data)
    assert not set("<>&") & set(text)
    assert json.loads(text) == data


def test_two_scenes_stand_side_by_side(seen, tmp_path):
    path = tmp_path / "two.html"
    viewer.write_viewer(path, seen, replace(seen, title="the other"))
    page = path.read_text(encoding="utf-8")
    assert [scene["title"] for scene in data_of(page)["scenes"]] == ["letters", "the other"]
    assert page.count('<section class="scene"') == 2


def test_the_server_gives_the_page_and_nothing_else(seen, tmp_path):
    path = tmp_path / "page.html"
    viewer.write_viewer(path, seen)
    (tmp_path / "secret.txt").write_text("secret")
    with server(path) as running:
        assert running.server_address[0] == "127.0.0.1"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{running.server_port}"
        with urllib.request.urlopen(at + "/") as answer:
            assert answer.read() == path.read_bytes()
        for other in ("/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(at + other)
        running.shutdown()
    with pytest.raises(ValueError, match="no page"):
        server(tmp_path / "none.html")
    with pytest.raises(ValueError, match="port"):
        server(path, port=70000)


def test_the_command_wants_a_page_or_a_model_with_its_circuit(circuit, tmp_path):
    circuit.save(tmp_path / "circuit.json")
    for given, message in (("circuit.json", "is no page"), (".", "is a folder"), ("x", "no page")):
        done = CliRunner().invoke(app, ["view", str(tmp_path / given)])
        assert done.exit_code == 1
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_calls_two_circuits_by_what_differs(tmp_path, monkeypatch):
    titles, written = [], []
    monkeypatch.setattr("tl_sparse.viewer.scene", lambda *_, title, **__: titles.append(title))
    monkeypatch.setattr("tl_sparse.viewer.write_viewer", lambda *given: written.append(given))
    pair = tl_sparse.zoo.HERE / "python-tiny"
    name, out = "single_double_quote.json", tmp_path / "two.html"
    done = CliRunner().invoke(app, [
        "view", str(pair / "sparse"), str(pair / "circuits/sparse" / name),
        "--other-model", str(pair / "control"), "--other", str(pair / "circuits/control" / name),
        "--no-text", "--no-serve", "--quiet", "--out", str(out),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert titles == ["single_double_quote, sparse", "single_double_quote, control"]
    assert written == [(out, None, None)]


# -- labels in circuits -----------------------------------------------------------------------


def test_labels_and_groups_are_kept_in_the_circuits_file(circuit, tmp_path):
    named = replace(circuit, labels={"0.v.3": "a \u202e <b>"}, groups={"0.v.3": "quotes"})
    named.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json") == named
    assert "groups" not in json.loads(circuit.to_json())
    with pytest.raises(ValueError, match=r"'0\.v\.9' is none"):
        replace(circuit, labels={"0.v.9": "no such node"})
    edge = Edge(Node.parse("0.attn_in.1"), Node.parse("0.v.3"), 1.5)
    assert edge in (named & circuit).edges

"""The page on circuits, run block by block as a reader would run it after the demo."""

import contextlib
import io
import json
import re
from pathlib import Path

from conftest import make_model

from tl_sparse.circuit import Circuit, Edge, Node
from tl_sparse.config import SparsityConfig
from tl_sparse.selection import interface_counts, nonzero_weights
from tl_sparse.sites import joint_matrix, model_hash, site_map

PAGE = Path(__file__).resolve().parents[1] / "docs/concepts/circuits.md"


def a_demo(folder: Path, corpus) -> None:
    """A model and a circuit where the demo leaves them."""
    sparse = SparsityConfig(weight_density=0.05)  # no rivals that vary: compile takes any circuit
    model = make_model(sparse, d_vocab=corpus.d_vocab, n_ctx=64, default_prepend_bos=False)
    model.set_tokenizer(corpus.tokenizer)
    model.save(folder / "demo/sparse/checkpoint/model")
    sites = site_map(model, final=True)
    edges = tuple(
        Edge(Node(joint.source, a), Node(joint.target, b), joint_matrix(model, joint)[a, b].item())
        for joint, live in nonzero_weights(model, sites).items()
        for a, b in live.nonzero().tolist()[::4]
    )
    nodes = {node for edge in edges for node in (edge.source, edge.target)}
    channels = {n.site: tuple(m.channel for m in nodes if m.site == n.site) for n in nodes}
    Circuit(
        nodes=tuple(nodes),
        edges=edges,
        references={info.site: (0.1,) * info.width for info in sites.sites},
        task="single_double_quote",
        model_hash=model_hash(model),
        n_interface=interface_counts(model, channels)[0],
        provenance={"answers": {"')": 3, '")': 4}},
    ).save(folder / "demo/sparse/circuit.json")


def test_the_code_of_the_page_runs_and_does_what_its_comments_say(
    quote_corpus, tmp_path, monkeypatch
):
    a_demo(tmp_path, quote_corpus)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    circuit, other = names["circuit"], names["other"]
    assert circuit.jaccard(other) == 1.0
    assert len(names["weights"]) == circuit.n_interface > 100
    assert "logits that read it" in printed.getvalue()
    assert "single_double_quote: " in printed.getvalue()
    assert names["logits"].shape == (len(names["batch"].tokens), 2)
    assert "sum_j pattern" in printed.getvalue()
    graph = json.loads((tmp_path / "graphs/quotes.json").read_text())
    assert len(graph["links"]) == len(names["graph"].links) > 10
    assert json.loads((tmp_path / "quotes.mib.json").read_text())["cfg"]["n_layers"] == 2
    assert len(blocks) == 10

"""`to_circuit_tracer`: a circuit on one prompt as the attribution graph of circuit-tracer.

The format is the JSON that circuit-tracer (0.5.0) writes and serves and Neuronpedia takes:
metadata, qParams, nodes, links. What a link's weight is stands in `prompt_graph.py`. Here,

- a kept node at a position is a node of feature type "channel"; its `feature` is the Cantor pair of
  `layer` and channel, as circuit-tracer's;
- `layer` counts the sites in the order of the forward pass, eight to a layer of the transformer
  (0: attn_in of layer 0, ... 7: mlp_out of layer 0, 8: attn_in of layer 1), so that no link stays
  in a row; the node's own name, e.g. `0.mlp_neuron.31`, is its `clerp`, the label;
- tokens are of type "embedding", logits of type "logit";
- each node has three fields more than circuit-tracer's, which other readers pass over: `name`,
  `constant` and `input`, with input = sum of the links' weights into it + constant;
- a node of attn_out has Neuronpedia's `qk_tracing_results`: the largest terms, at most ten of a
  kind, of the attention scores by which it chose its positions.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.circuit import Circuit, Node
from tl_sparse.exports.prompt_graph import Link, Place, PromptGraph, Score, Value
from tl_sparse.exports.tracing import prompt_graph
from tl_sparse.files import write_text
from tl_sparse.nodes import SITES
from tl_sparse.tasks.base import Task

_ROWS = SITES.index("final_in")
"""Rows of the drawing for each layer of the transformer."""
_MAX_TERMS = 10
_LIST = "graph-metadata.json"


def to_circuit_tracer(
    circuit: Circuit,
    model: HookedTransformer,
    prompt: str | Sequence[int] | Int[Tensor, " pos"],
    path: str | Path,
    *,
    task: Task | None = None,
) -> PromptGraph:
    """Write what a circuit does on one prompt as circuit-tracer's JSON, whole or not at all.

    `path` ends in .json; the graph's name (`slug`) is the file's, and `scan` is tl_sparse and the
    start of the model's hash. The graph is entered in `graph-metadata.json` beside the file, where
    `circuit-tracer start-server --graph_file_dir FOLDER` looks for it. The logits are the answers
    of a `PairTask`; without a task the most probable tokens, at most 10. Gives the graph as data.

    Raises:
        ValueError: If the circuit does not fit the model, the prompt is empty or too long, the
            model has parts that the sums do not account for, or the list beside the file is
            damaged.
        OSError: If the files can't be written.
    """
    path = Path(path)
    if path.suffix != ".json" or path.name == _LIST:
        raise ValueError(f"circuit-tracer reads graphs from files NAME.json, got {path.name!r}.")
    graph = prompt_graph(circuit, model, prompt, task=task)
    scan = f"tl_sparse-{circuit.model_hash[:8]}"
    data = _Writer(graph, model).data(slug=path.stem, scan=scan)
    listed = _listed(path.with_name(_LIST), data["metadata"])
    write_text(path, json.dumps(data, indent=1, allow_nan=False))
    write_text(path.with_name(_LIST), listed)
    return graph


def _listed(path: Path, metadata: dict[str, Any]) -> str:
    """Give the list of a folder's graphs, the new one in the place of one of its name."""
    others: list[Any] = []
    if path.exists():
        try:
            graphs = json.loads(path.read_text(encoding="utf-8"))["graphs"]
            others = [graph for graph in graphs if graph["slug"] != metadata["slug"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no list of graphs ({error!r}). Choose another folder, or remove it."
            ) from None
    return json.dumps({"graphs": [*others, metadata]}, indent=1)


class _Writer:
    """Writes a graph's places and links under circuit-tracer's names."""

    def __init__(self, graph: PromptGraph, model: HookedTransformer) -> None:
        self.graph, self.model = graph, model
        self.n_rows = 1 + max(
            (_row(p.what) for p in graph.values if isinstance(p.what, Node)), default=-1
        )
        self.looks: dict[tuple[int, int, int], list[Score]] = defaultdict(list)
        for score in graph.scores:
            self.looks[score.layer, score.head, score.query_pos].append(score)

    def data(self, *, slug: str, scan: str) -> dict[str, Any]:
        tokens = self.graph.tokens
        into = self.graph.into()
        return {
            "metadata": {
                "slug": slug,
                "scan": scan,
                "transcoder_list": [],
                "prompt_tokens": [self._text(token) for token in tokens],
                "prompt": self._text(*tokens),
                "node_threshold": None,
                "schema_version": 1,
            },
            "qParams": {
                "pinnedIds": [],
                "supernodes": [],
                "linkType": "both",
                "clickedId": "",
                "sg_pos": "",
            },
            "nodes": [
                self._node(place, value, into.get(place, []))
                for place, value in self.graph.values.items()
            ],
            "links": [
                {"source": self._id(source), "target": self._id(target), "weight": weight}
                for source, target, weight in self.graph.links
            ],
        }

    def _text(self, *tokens: int) -> str:
        tokenizer: Any = self.model.tokenizer
        if tokenizer is None:
            return " ".join(f"token {token}" for token in tokens)
        return tokenizer.decode(list(tokens))

    def _id(self, place: Place) -> str:
        if place.what == "token":
            return f"E_{place.token}_{place.pos}"
        if isinstance(place.what, Node):
            return f"{_row(place.what)}_{place.what.channel}_{place.pos}"
        return f"{self.n_rows}_{place.token}_{place.pos}"

    def _node(self, place: Place, value: Value, into: list[Link]) -> dict[str, Any]:
        what, pos = place.what, place.pos
        node: dict[str, Any] = {"node_id": self._id(place), "ctx_idx": pos}
        node |= {"run_idx": 0, "reverse_ctx_idx": 0, "influence": None}
        node |= {"token_prob": 0.0, "is_target_logit": False}
        if isinstance(what, Node):
            row, channel = _row(what), what.channel
            node |= {"feature": (row + channel) * (row + channel + 1) // 2 + channel}
            node |= {"layer": str(row), "feature_type": "channel", "clerp": self._name(what)}
            node |= {"jsNodeId": f"{row}_{channel}-0", "name": str(what)}
            if what.site.name == "attn_out":
                node["qk_tracing_results"] = self._scores(place, into)
        elif what == "token":
            node |= {"feature": pos, "layer": "E", "feature_type": "embedding", "name": "token"}
            node |= {"jsNodeId": f"E_{place.token}-{pos}", "clerp": self._text(place.token)}
        else:
            probability = self.graph.probabilities[place.token]
            node |= {"feature": place.token, "layer": str(self.n_rows), "feature_type": "logit"}
            node |= {"jsNodeId": f"L_{place.token}-{pos}", "name": "logit"}
            node |= {"token_prob": probability, "is_target_logit": place == self.graph.logits[0]}
            node["clerp"] = f'Output "{self._text(place.token)}" (p={probability:.3f})'
        if what == "token":
            return node | {"activation": None}
        return node | {name: getattr(value, name) for name in ("activation", "input", "constant")}

    def _name(self, node: Node) -> str:
        if node.site.name not in ("q", "k", "v"):
            return str(node)
        head, channel = divmod(node.channel, self.model.cfg.d_head)
        return f"{node} (head {head}, channel {channel})"

    def _scores(self, place: Place, into: list[Link]) -> dict[str, list[list[Any]]]:
        """Give the terms of the scores of the positions that a place's links come from."""
        assert isinstance(place.what, Node)
        layer, d_head = place.what.site.layer, self.model.cfg.d_head
        sources = {
            (link.source.what.channel // d_head, link.source.pos)
            for link in into
            if isinstance(link.source.what, Node)
        }
        terms = [
            score
            for head in sorted({head for head, _ in sources})
            for score in self.looks[layer, head, place.pos]
            if (head, score.key_pos) in sources
        ]
        terms.sort(key=lambda score: -abs(score.weight))
        both = [[self._id(s.q), self._id(s.k), s.weight] for s in terms if s.q and s.k]
        q_alone = [[self._id(s.q), s.weight] for s in terms if s.q and not s.k]
        k_alone = [[self._id(s.k), s.weight] for s in terms if s.k and not s.q]
        return {
            "pair_wise_contributors": both[:_MAX_TERMS],
            "top_q_marginal_contributors": q_alone[:_MAX_TERMS],
            "top_k_marginal_contributors": k_alone[:_MAX_TERMS],
        }


def _row(node: Node) -> int:
    return node.site.layer * _ROWS + SITES.index(node.site.name) % _ROWS

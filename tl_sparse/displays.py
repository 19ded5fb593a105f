"""What circuits, histories and summaries look like in a notebook: HTML with its own style.

Notebooks ask an object for `_repr_html_`, which calls the function here. Nothing is left out in
silence, and a circuit always says that it alone is no audit.
"""

from collections.abc import Mapping
from typing import Any

from tl_sparse.circuit import Circuit
from tl_sparse.curves import draw_curves
from tl_sparse.drawing import draw_circuit
from tl_sparse.history import History
from tl_sparse.interface import residual_links
from tl_sparse.markup import details, fragment, numbers, table, warning
from tl_sparse.summary import ModelSummary
from tl_sparse.wording import escape

MAX_DRAWN = 150
"""Edges that a notebook draws of a circuit; of a larger one the largest."""

NOT_AUDITED = (
    "Not audited. A circuit that reaches the target loss may still compute the task in another way "
    "than the model does. Circuits are not believed until audited: `tl-sparse audit` tries to "
    "prove one wrong."
)
"""What is said of every circuit without an audit."""

_HERE = "Not audited here. " + NOT_AUDITED.partition(". ")[2].replace(
    "`tl-sparse audit`", "`audit(model, circuit, task, corpus)`"
)
_FORCED = "The model failed the task's gate, and `prune(force=True)` went on all the same."


def circuit_fragment(circuit: Circuit) -> str:
    """Give a circuit as notebooks show it: sizes and losses, the drawing, and what it isn't."""
    links = [] if "saes" in circuit.provenance else residual_links(circuit)
    svg = draw_circuit(circuit, residual=links, max_edges=MAX_DRAWN)
    parts = [
        f"<h3>{escape(f'Circuit for {circuit.task}')}</h3>",
        numbers(_sizes(circuit)),
        warning(_FORCED) if circuit.forced else "",
        warning(_HERE, strong_first=True),
        f'<figure><div class="wide" tabindex="0">{svg}</div>{LEGEND}</figure>',
    ]
    return fragment("\n".join(filter(None, parts)))


def _sizes(circuit: Circuit) -> dict[str, Any]:
    losses = circuit.losses
    return {
        "edges": circuit.n_edges,
        "nodes": circuit.n_nodes,
        "task loss, test": losses.get("test"),
        "task loss of the whole model, test": losses.get("model_test"),
        "target loss": float(circuit.target_loss),
        "accuracy, test": losses.get("test_accuracy"),
        "accuracy of the whole model, test": losses.get("model_test_accuracy"),
        "what is out is set to": circuit.ablation.replace("_", " "),
    }


def history_fragment(history: History) -> str:
    """Give a training run as notebooks show it: where it ended, and its curves."""
    last = history.records[-1] if history.records else {}
    some = {
        "tokens": history.n_tokens,
        "validation loss (nats per token)": float(history.validation_loss),
        "training loss (nats per token)": last.get("loss"),
        "weight density": last.get("weight_density"),
    }
    curves = training_curves({"this run": history})
    return fragment(f"<h3>Training</h3>\n{numbers(some)}\n{curves}")


def summary_fragment(summary: ModelSummary) -> str:
    """Give what a model is made of as notebooks show it: one row for each parameter."""
    rows = [
        {
            "parameter": each.name,
            "shape": " x ".join(map(str, each.shape)),
            "nonzero": each.n_nonzero,
            "density": float(each.density),
        }
        for each in summary.parameters
    ]
    dead = [
        {"layer": layer, "dead neurons": n_dead, "of": summary.d_mlp}
        for layer, n_dead in enumerate(summary.n_dead_neurons)
    ]
    parts = [f"<p>{escape(summary.title)}</p>", table(rows)]
    if dead:
        parts.append(details("Dead neurons: no weight in, or none out", table(dead)))
    return fragment("\n".join(parts))


def training_curves(histories: Mapping[str, History]) -> str:
    """Draw validation loss and weight density of some runs over the tokens seen, as HTML."""
    figures = []
    for column, label, is_log in (
        ("validation_loss", "validation loss (nats per token)", False),
        ("weight_density", "weight density", True),
    ):
        curves = {
            name: [(float(r["tokens"]), float(r[column])) for r in history.records if column in r]
            for name, history in histories.items()
        }
        figures.append(draw_curves(curves, x_label="tokens", y_label=label, log_y=is_log))
    return f'<div class="curves">{"".join(figures)}</div>'


LEGEND = """<figcaption><ul class="legend">
<li><svg class="circuit" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true"><path
class="positive" stroke-width="3" d="M1,5H33"/></svg>positive weight (the wider, the larger)</li>
<li><svg class="circuit" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true"><path
class="negative" stroke-width="3" d="M1,5H33"/></svg>negative weight</li>
<li><svg class="circuit" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true"><path
class="residual" d="M1,5H33"/></svg>same channel of the residual stream, no weight</li>
<li><svg class="circuit" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true"><path
class="look" d="M1,5H33"/></svg>q and k choose the positions that v is taken from</li>
<li>Hn: attention head n</li></ul></figcaption>"""
"""What the lines of a drawn circuit mean; HTML."""

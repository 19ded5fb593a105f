"""A circuit in the formats of other tools.

- `to_circuit_tracer`: the attribution graph of circuit-tracer and Neuronpedia, for one prompt;
  `prompt_graph` gives the same as data.
- `to_mib`: the graph of heads and MLPs that the MIB benchmark and EAP-IG read.
"""

from tl_sparse.exports.circuit_tracer import to_circuit_tracer
from tl_sparse.exports.mib import to_mib
from tl_sparse.exports.prompt_graph import Link, Place, PromptGraph, Score, Value
from tl_sparse.exports.tracing import prompt_graph

__all__ = ["Link", "Place", "PromptGraph", "Score", "Value", "prompt_graph", "to_circuit_tracer",
           "to_mib"]  # fmt: skip

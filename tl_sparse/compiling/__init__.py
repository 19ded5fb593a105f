"""`circuit.compile(model)`: a circuit as a small module of its own.

A circuit in its model runs the whole model, most of it at reference values. Compiled, only what the
circuit needs is left: its weights, with the reference values folded into biases. Two things couple
a kept node to all channels that were cut, and both are known in advance:

- the **norm's scale**: the channels that the circuit does not touch hold the token's embedding
  plus constants, so their sum of squares is a table over tokens;
- **AbsTopK's choice**: a kept channel stays if it is among the k largest. Most of its rivals are
  constants, whose order is known, so a threshold in a table decides; the few that vary because a
  kept node feeds them are computed too.

Attention sinks add a third: the values of a head that the circuit does not touch are mixed by a
pattern whose rows sum to less than 1, by how much depends on the position: a table again.

In the order of a call: `build` works out what varies and makes the tables, `parts` and `attention`
are the modules that it fills, `compiled` is the whole, and `equations` prints it.
"""

from tl_sparse.compiling.compiled import CompiledCircuit, compile_circuit

__all__ = ["CompiledCircuit", "compile_circuit"]

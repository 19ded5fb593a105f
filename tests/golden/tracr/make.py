"""Compile two Tracr programs and write their weights and answers as JSON, beside this file.

Needs `tracr-pypi` 1.0.0 (Apache-2.0; Lindner et al. 2023, arXiv 2301.05062) with jax, in a virtual
environment of its own, as the tests need neither:

    python -m venv tracr-venv && tracr-venv/bin/pip install tracr-pypi==1.0.0 jax
    tracr-venv/bin/python tests/golden/tracr/make.py

The programs, vocabularies and length are those of ACDC and auto-circuit. Each file has the nonzero
weights under Haiku's names, the unembedding, Tracr's own output (the residual stream after the last
layer, by its own forward pass in float32) on some inputs and its decoded answers on all of them.
"""

# pyright: reportMissingImports=false
# Tracr and haiku are in the environment above alone.

import itertools
import json
from pathlib import Path

import haiku as hk
import numpy as np
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

PROGRAMS = {
    "reverse": (lambda: lib.make_reverse(rasp.tokens), (1, 2, 3)),
    "xproportion": (lambda: lib.make_frac_prevs(rasp.tokens == "x"), ("w", "x", "y", "z")),
}
MAX_SEQ_LEN = 5
SHOWN = 24


def nonzeros(matrix):
    """Give a matrix as its shape and its nonzero entries: row, column, value."""
    entries = [[*map(int, place), float(matrix[tuple(place)])] for place in np.argwhere(matrix)]
    return {"shape": list(matrix.shape), "entries": entries}


def unembedding(model):
    """Give W_U, which Tracr keeps inside a closure, as what it makes of unit vectors."""
    run = hk.without_apply_rng(
        hk.transform(lambda x: model.get_compiled_model().unembed(x, use_unembed_argmax=False))
    )
    made = np.array(run.apply({}, np.eye(len(model.residual_labels), dtype=np.float32)))
    return made if made.ndim == 2 else made[:, None]


def compile_(name):
    """Compile one program and run it."""
    make, vocab = PROGRAMS[name]
    model = compiling.compile_rasp_to_model(
        make(), vocab=set(vocab), max_seq_len=MAX_SEQ_LEN, compiler_bos="BOS"
    )
    params = {
        f"{module}.{leaf}": nonzeros(np.array(value))
        for module, leaves in model.params.items()
        for leaf, value in leaves.items()
    }
    inputs = [
        ["BOS", *rest]
        for length in range(1, MAX_SEQ_LEN + 1)
        for rest in itertools.product(vocab, repeat=length)
    ]
    shown = [inputs[i * len(inputs) // SHOWN] for i in range(SHOWN)]
    cases = []
    for tokens in shown:
        out = model.apply(tokens)
        cases.append(
            {
                "tokens": [int(i) for i in model.input_encoder.encode(tokens)],
                "residual": nonzeros(np.array(out.transformer_output[0]).round(6)),
                "decoded": out.decoded[1:],
            }
        )
    return {
        "program": name,
        "vocabulary": {str(k): v for k, v in model.input_encoder.encoding_map.items()},
        "answers": {
            str(k): v for k, v in getattr(model.output_encoder, "encoding_map", {}).items()
        },
        "residual_labels": model.residual_labels,
        "n_heads": model.model_config.num_heads,
        "params": params,
        "unembed": nonzeros(unembedding(model)),
        "cases": cases,
    }


if __name__ == "__main__":
    for name in PROGRAMS:
        text = json.dumps(compile_(name))
        text = text.replace('"transformer/', '\n"transformer/').replace('{"tokens"', '\n{"tokens"')
        Path(__file__).with_name(f"{name}.json").write_text(text + "\n", encoding="utf-8")

"""What sparsity costs: models and n-grams scored on the same text, and set side by side."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from tl_sparse import HookedSparseTransformer
from tl_sparse.sweeps import FIGURES, PRESETS, Store, Text, run_cells, summarise
from tl_sparse.sweeps.cells import BitsCell, ModelCell, NGramCell
from tl_sparse.sweeps.plans import equal_widths, is_dense, sparse_model
from tl_sparse.sweeps.presets import n_block_weights

LAPTOP = PRESETS["laptop"]
TINY = replace(PRESETS["tiny"], n_characters=60_000)
NOWHERE = Text(hash="0" * 64, n_characters=1000, vocab_size=300, dialect="tasks")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A model of five steps and bigrams, both scored."""
    store = Store(tmp_path_factory.mktemp("scored"))
    text = TINY.text(store.text_folder, progress=False)
    preset = replace(TINY, sparse_training=replace(TINY.sparse_training, n_tokens=5_120))
    cells = [
        BitsCell(model=sparse_model(preset, text, seed=0, width=32)),
        NGramCell(text=text, order=2),
    ]
    outcome = run_cells(cells, store, progress=False)
    assert (outcome.n_done, outcome.failed) == (3, {})
    return store, text, cells


def test_a_models_score_is_its_loss_over_the_bytes_of_the_text(scored):
    store, text, (cell, _) = scored
    result = store.result(cell)
    model = HookedSparseTransformer.load(store.model_folder(cell.model))
    corpus = text.open(store.text_folder, progress=False)
    n_windows = corpus.validation.n_tokens // 128
    windows = corpus.validation.windows(128, n_windows)
    with torch.no_grad():
        loss = float(model(windows, return_type="loss"))
    assert result["n_tokens"] == n_windows * 127
    assert result["nats_per_token"] == pytest.approx(loss, rel=1e-5)
    n_bytes = sum(
        len(corpus.tokenizer.decode([token], skip_special_tokens=True).encode())
        for token in windows[:, 1:].flatten().tolist()
        if corpus.tokenizer.decode([token]).isascii()
    )
    bits = loss * n_windows * 127 / math.log(2)
    assert result["bits_per_byte"] == pytest.approx(bits / n_bytes, rel=0.02)  # ASCII but for a few
    assert result["n_nonzero"] < result["n_parameters"]
    assert result["model_hash"] == store.result(cell.model)["model_hash"]


def test_n_grams_are_scored_on_the_tokens_that_models_are(scored):
    store, text, (of_model, cell) = scored
    result, other = store.result(cell), store.result(of_model)
    assert result["n_tokens"] == other["n_tokens"]
    same = other["nats_per_token"] / other["bits_per_byte"]  # bytes of a token
    assert result["nats_per_token"] / result["bits_per_byte"] == pytest.approx(same)
    assert result["nats_per_token"] < math.log(300)
    corpus = text.open(store.text_folder, progress=False)
    assert result["n_tokens_counted"] == corpus.train.n_tokens
    tokens = corpus.train.windows(corpus.train.n_tokens, 1)[0].tolist()
    pairs = set(pairwise(tokens))
    assert result["n_parameters"] == len(pairs) + len(set(tokens))
    assert result["training_flops"] is None


def test_a_score_is_done_anew_for_other_weights(scored):
    store, _, (cell, _) = scored
    path = store.folder / "cells" / f"{cell.model.key}.json"
    before = path.read_text()
    path.write_text(before.replace(store.result(cell)["model_hash"], "0" * 64))
    assert store.result(cell) is None
    path.write_text(before)


def test_dense_models_are_as_equal_as_widths_allow():
    widths = {why: width for width, why in equal_widths(LAPTOP).items()}
    assert widths["parameters, compute"] == 128
    assert widths["loss, about"] == 48
    in_blocks, everywhere = widths["nonzeros in blocks"], widths["nonzeros"]
    # Two layers; queries, keys, values and outputs of heads of 16; neurons in and out.
    assert n_block_weights(LAPTOP, 17) == 2 * (4 * 17 * 32 + 8 * 17**2) == 8976
    assert n_block_weights(LAPTOP, 16) == 6144
    assert in_blocks == 17  # 8,976 / 8,000 is nearer to one than 8,000 / 6,144
    wanted = 8000 + 2 * 1024 * 128
    sizes = {w: 2 * 1024 * w + n_block_weights(LAPTOP, w) for w in (everywhere - 1, everywhere)}
    assert sizes[everywhere] >= wanted > sizes[everywhere - 1] or (
        abs(sizes[everywhere] - wanted) < 2 * 1024
    )


def test_a_width_that_is_equal_in_two_things_says_both():
    widths = equal_widths(replace(LAPTOP, control_widths=(17,)))
    assert widths[17] == "loss, about; nonzeros in blocks"


def test_the_plan_has_a_ladder_of_nonzeros_and_dense_models_of_every_seed():
    cells = FIGURES["capability"](LAPTOP, NOWHERE)
    models = [c for c in cells if isinstance(c, ModelCell)]
    assert [c.model for c in cells if isinstance(c, BitsCell)] == models
    assert [c.order for c in cells if isinstance(c, NGramCell)] == [1, 2, 3, 4, 5]
    first = [m for m in models if m.training.seed == 0]
    n_weights = n_block_weights(LAPTOP, 128)
    sparse = [round(m.sparsity.weight_density * n_weights) for m in first if not is_dense(m)]
    assert sparse == [4_000, 8_000, 16_000, 32_000, 128_000, 32_000, 128_000]
    rates = [m.training.learning_rate for m in first if not is_dense(m)]
    assert rates == [0.015] * 5 + [0.0075, 0.00375]  # by the root of 4 and of 16 lower
    assert sorted(m.width for m in first if is_dense(m)) == [17, 48, 71, 128]
    assert len(models) == 3 * 11
    figure3 = {c.key for c in FIGURES["figure3"](LAPTOP, NOWHERE)}
    assert sum(m.key in figure3 for m in first) == 4  # three numbers of nonzeros, one control


def test_the_optimiser_is_taken_apart_at_the_short_training():
    for name, n_tokens in (("laptop", 5_242_880), ("tiny", 102_400)):
        cells = FIGURES["optimizer"](PRESETS[name], NOWHERE)
        assert {c.training.n_tokens for c in cells if isinstance(c, ModelCell)} == {n_tokens}


def made_up(tmp_path: Any) -> tuple[Any, Store]:
    """Two seeds: a sparse model loses a tenth of a bit for each halving, dense ones 1.5 bits.

    That is at the better learning rate: the recipe's at 32,000 nonzeros, the lower one at 128,000.
    """
    preset, store = replace(LAPTOP, seeds=(0, 1)), Store(tmp_path)
    for cell in FIGURES["capability"](preset, NOWHERE):
        result: dict[str, Any] = {"n_tokens": 10, "n_nonzero": 7, "nats_per_token": 2.0}
        result |= {"n_parameters": 9, "training_flops": None}
        if isinstance(cell, NGramCell):
            result["bits_per_byte"] = 3.0 - cell.order / 10
        elif isinstance(cell, ModelCell):
            n = round(cell.sparsity.weight_density * n_block_weights(preset, cell.width))
            result = {"model_hash": cell.key, "validation_loss": 3.0, "n_nonzero_blocks": n}
        else:
            assert isinstance(cell, BitsCell)
            n = cell.model.sparsity.weight_density * n_block_weights(preset, cell.model.width)
            bits = 1.5 if is_dense(cell.model) else 2.0 - 0.1 * math.log2(n / 8000)
            bits += 0.2 * cell.model.training.seed
            if (round(n), cell.model.training.learning_rate) in (
                (32_000, 0.0075),
                (128_000, 0.015),
            ):
                bits += 0.3
            result |= {"model_hash": cell.model.key, "bits_per_byte": bits, "training_flops": 2e9}
        store.keep(cell, result, seconds=1.0)
    return preset, store


def test_the_cost_of_a_halving_is_what_the_seeds_lose(tmp_path):
    preset, store = made_up(tmp_path)
    summary = summarise("capability", preset, NOWHERE, store)
    bits = summary.tables["bits"]
    assert len(bits) == 7 + 4 + 5
    rows = {(r["model"], r.get("nonzeros in blocks"), r.get("learning rate")): r for r in bits}
    assert len(rows) == len(bits)
    main = rows["sparse", 8000, 0.015]
    assert (main["bits per byte"], main["over the main sparse"]) == (2.1, 0.0)
    assert (main["spread over seeds"], main["seeds"]) == (0.2, 2)
    assert rows["sparse", 128_000, 0.015]["over the main sparse"] == -0.1
    assert rows["sparse", 128_000, 0.00375]["over the main sparse"] == -0.4
    equal = rows["dense", n_block_weights(preset, 128), preset.dense_training.learning_rate]
    assert (equal["equal in"], equal["over the main sparse"]) == ("parameters, compute", -0.5)
    assert rows["3-grams", None, None]["bits per byte"] == 2.7
    steps = summary.tables["cost"]
    assert [(r["nonzeros in blocks, from"], r["to"]) for r in steps] == [
        (128_000, 32_000), (32_000, 16_000), (16_000, 8_000), (8_000, 4_000)
    ]  # fmt: skip
    assert steps[0]["bits per byte lost"] == 0.2
    assert {row["for each halving"] for row in steps} == {0.1}
    assert summary.curves["sparse, width 128"] == [
        (n, pytest.approx(2.1 - 0.1 * math.log2(n / 8000)))
        for n in (4_000, 8_000, 16_000, 32_000, 128_000)
    ]
    assert len(summary.curves["dense"]) == 4
    page, rate = summary.markdown(), preset.dense_training.learning_rate
    assert "bits per byte against nonzeros in blocks" in page
    assert f"| dense | 128 | 393,216 | {rate} | parameters, compute |" in page


def test_a_seed_without_its_main_model_is_compared_with_nothing(tmp_path):
    preset, store = made_up(tmp_path)
    for seed in preset.seeds:
        main = BitsCell(model=sparse_model(preset, NOWHERE, seed=seed))
        (store.folder / "cells" / f"{main.key}.json").unlink()
    summary = summarise("capability", preset, NOWHERE, store)
    assert {row.get("over the main sparse") for row in summary.tables["bits"]} == {None}
    assert [(r["nonzeros in blocks, from"], r["to"]) for r in summary.tables["cost"]][-1] == (
        16_000, 4_000
    )  # fmt: skip

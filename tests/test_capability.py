"""Bits per byte against arithmetic, and n-gram probabilities against a dictionary of counts."""

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model

from tl_sparse import capability
from tl_sparse.capability import NGramModel, ngrams
from tl_sparse.config import TrainingConfig
from tl_sparse.training.losses import mean_loss


class Dictionary:
    """Interpolated Kneser-Ney by the textbook, one n-gram at a time."""

    def __init__(self, tokens, d_vocab, order):
        self.d_vocab, self.order = d_vocab, order
        grams = [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]
        self.counts: dict[int, Counter] = {order: Counter(grams)}
        for length in range(order - 1, 0, -1):
            before = defaultdict(set)
            for gram in self.counts[length + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[length] = Counter({gram: len(s) for gram, s in before.items()})

    def probability(self, context, token):
        if len(context) > self.order - 1:
            context = context[len(context) - self.order + 1 :]
        lower = 1 / self.d_vocab if not context else self.probability(context[1:], token)
        counts = self.counts[len(context) + 1]
        behind = {g: n for g, n in counts.items() if g[:-1] == tuple(context)}
        if not behind:
            return lower
        n = Counter(counts.values())
        discount = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
        total = sum(behind.values())
        own = max(behind.get((*context, token), discount) - discount, 0)
        return (own + discount * len(behind) * lower) / total

    def __call__(self, window):
        return [self.probability(window[:i], window[i]) for i in range(1, len(window))]


def sequence(n, d_vocab, seed=0):
    """Tokens with habits: each is often followed by its successor."""
    random = np.random.default_rng(seed)
    tokens = [0]
    while len(tokens) < n:
        follows = random.random() < 0.6
        tokens.append((tokens[-1] + 1) % d_vocab if follows else int(random.integers(d_vocab)))
    return np.array(tokens)


@pytest.mark.parametrize(
    ("order", "n", "d_vocab"), [(3, 300, 5), (5, 200, 4), (1, 50, 7), (2, 3, 9)]
)
def test_probabilities_are_those_of_a_dictionary_of_counts(order, n, d_vocab):
    tokens = sequence(n, d_vocab)
    model = NGramModel.count(tokens, d_vocab, order=order)
    oracle = Dictionary(tokens.tolist(), d_vocab, order)
    windows = torch.from_numpy(sequence(60, d_vocab, seed=1).reshape(5, 12))
    expected = torch.tensor([oracle(window) for window in windows.tolist()])
    torch.testing.assert_close(model.log_probs(windows).exp().float(), expected)
    assert model.n_counts == sum(map(len, oracle.counts.values()))
    assert model.order == order


@pytest.mark.parametrize("d_vocab", [6, 8])
def test_probabilities_behind_any_context_sum_to_one(d_vocab):
    model = NGramModel.count(sequence(200, 6), d_vocab, order=4)
    for context in ([0, 1, 2], [5, 5, 5], [3], [0, 3, 1, 2, 4], [d_vocab - 1, 0]):
        windows = torch.tensor([[*context, token] for token in range(d_vocab)])
        assert model.log_probs(windows)[:, -1].exp().sum() == pytest.approx(1, abs=1e-12)


def test_counting_in_blocks_gives_the_same_model(monkeypatch):
    tokens = sequence(500, 6)
    whole = NGramModel.count(tokens, 6, order=3)
    monkeypatch.setattr(ngrams, "BLOCK", 37)
    blocks = NGramModel.count(tokens, 6, order=3)
    windows = torch.from_numpy(sequence(200, 6, seed=2).reshape(10, 20))
    assert torch.equal(blocks.log_probs(windows), whole.log_probs(windows))
    assert blocks.n_counts == whole.n_counts


def test_a_window_shorter_than_the_order_is_predicted_from_what_it_has():
    model = NGramModel.count(sequence(100, 5), 5, order=4)
    window = torch.tensor([[2, 3]])
    longer = torch.tensor([[2, 3, 0]])
    assert torch.equal(model.log_probs(window), model.log_probs(longer)[:, :1])


def test_an_order_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"takes 16 bits.*order is 1 to 3, got 4"):
        NGramModel.count(np.arange(10), 50_000, order=4)
    with pytest.raises(ValueError, match="order is 1 to 63, got 0"):
        NGramModel.count(np.zeros(10, dtype=np.int64), 2, order=0)
    with pytest.raises(ValueError, match="needs 3 tokens, one n-gram, got 2"):
        NGramModel.count(np.array([1, 2]), 5, order=3)
    with pytest.raises(ValueError, match="below d_vocab, 2; these are from 0 to 7"):
        NGramModel.count(np.array([0, 5, 1, 7, 3]), 2, order=2)


def uniform(d_vocab):
    return lambda windows: torch.full(windows[:, 1:].shape, -math.log(d_vocab))


@pytest.mark.parametrize("n_windows", [None, 3])
def test_a_uniform_model_has_log2_of_the_vocabulary_in_bits_per_token(corpus, n_windows):
    bits = capability.bits_per_byte(
        uniform(corpus.d_vocab), corpus, n_ctx=16, n_windows=n_windows, progress=False
    )
    expected = math.log2(corpus.d_vocab) * bits.n_tokens / bits.n_bytes
    assert bits.per_byte == pytest.approx(expected, rel=1e-6)
    assert bits.n_tokens == 15 * (n_windows or corpus.validation.n_tokens // 16)


def test_the_bytes_of_all_tokens_are_those_of_the_text(corpus, texts):
    sizes = capability.token_bytes(corpus.tokenizer)
    for split in (corpus.train, corpus.validation):
        tokens = torch.from_numpy(split.tokens.astype(np.int64))
        assert sizes[tokens].sum() == split.n_bytes
    assert sizes[corpus.tokenizer.eos_token_id] == 0
    ids = corpus.tokenizer.encode("naïve → x\n")
    assert sizes[ids].sum() == len("naïve → x\n".encode())


def test_only_the_predicted_tokens_bytes_are_counted(corpus):
    windows = corpus.validation.windows(16, 4)
    text = [corpus.tokenizer.decode(window[1:], skip_special_tokens=True) for window in windows]
    bits = capability.bits_per_byte(
        uniform(2), corpus, n_ctx=16, n_windows=4, batch_size=3, progress=False
    )
    assert bits.n_bytes == sum(len(some.encode()) for some in text)  # the text here is ASCII


def test_a_models_nats_are_its_validation_loss(corpus):
    model = make_model(d_vocab=corpus.d_vocab)
    windows = corpus.validation.windows(16, 5)
    bits = capability.bits_per_byte(model, corpus, n_windows=5, progress=False)
    assert bits.nats_per_token == pytest.approx(mean_loss(model, windows), rel=1e-5)


def test_longer_n_grams_predict_better_than_shorter_ones_and_than_guessing(corpus):
    found = []
    for order in (1, 2, 4):
        model = NGramModel.fit(corpus.train, corpus.d_vocab, order=order, progress=False)
        bits = capability.bits_per_byte(model.log_probs, corpus, n_ctx=16, progress=False)
        found.append(bits.nats_per_token)
    assert math.log(corpus.d_vocab) > found[0] > found[1] > found[2]


def test_less_text_is_counted_if_asked_for(corpus):
    some = NGramModel.fit(corpus.train, corpus.d_vocab, order=3, n_tokens=1000, progress=False)
    same = NGramModel.count(corpus.train.tokens[:1000], corpus.d_vocab, order=3)
    assert some.n_counts == same.n_counts


def test_training_compute_is_at_least_six_flops_per_weight_and_token(corpus):
    model = make_model(d_vocab=corpus.d_vocab)
    training = TrainingConfig(n_tokens=16 * 4 * 10, batch_size=4)
    flops = capability.training_flops(model, training)
    names = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_U")
    weights = sum(p.numel() for n, p in model.named_parameters() if n.endswith(names))
    assert flops >= 6 * weights * training.n_tokens
    assert flops < 3 * 6 * weights * training.n_tokens
    twice = TrainingConfig(n_tokens=16 * 4 * 20, batch_size=4)
    assert capability.training_flops(model, twice) == pytest.approx(2 * flops)


def test_the_table_has_sizes_compute_and_bits_of_every_model(corpus):
    model = make_model(d_vocab=corpus.d_vocab)
    with torch.no_grad():
        model.blocks[0].mlp.W_in.zero_()
    training = TrainingConfig(n_tokens=640, batch_size=4)
    row = capability.capability_row(
        "sparse", model, corpus, training=training, n_windows=5, progress=False
    )
    counted = NGramModel.fit(corpus.train, corpus.d_vocab, order=2, progress=False)
    other = capability.capability_row("2-gram", counted, corpus, n_ctx=16, progress=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert row.n_parameters == sum(p.numel() for p in trained)
    assert row.n_nonzero == sum(int((p != 0).sum()) for p in trained)
    assert row.n_nonzero < row.n_parameters
    assert (other.n_parameters, other.training_flops) == (counted.n_counts, None)
    lines = capability.capability_table([row, other]).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith(f"| sparse | {row.n_parameters:,} | {row.n_nonzero:,} | ")
    assert lines[3].endswith(f"| - | {other.nats_per_token:.3f} | {other.bits_per_byte:.3f} |")
    assert row.to_dict()["bits_per_byte"] == row.bits_per_byte


def test_a_function_without_a_window_and_a_foreign_tokenizer_are_refused(corpus):
    with pytest.raises(ValueError, match="set n_ctx, got None"):
        capability.bits_per_byte(uniform(5), corpus)
    wrong: Any
    for wrong, message in (
        ({"n_ctx": 2.5}, "set n_ctx, got 2.5"),
        ({"n_ctx": 8, "n_windows": 0}, "n_windows is a positive finite integer or None, got 0"),
        ({"n_ctx": 8, "batch_size": 0}, "batch_size is a positive finite integer, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            capability.bits_per_byte(uniform(5), corpus, **wrong)
    with pytest.raises(ValueError, match="reads at most 16 tokens at a time, got n_ctx=17"):
        capability.bits_per_byte(make_model(n_ctx=16), corpus, n_ctx=17)
    for n_tokens in (0, -5):
        with pytest.raises(ValueError, match=f"or None, got {n_tokens}"):
            NGramModel.fit(corpus.train, corpus.d_vocab, n_tokens=n_tokens)
    with pytest.raises(ValueError, match=r"byte-level tokenizer alone.*got int"):
        capability.token_bytes(3)

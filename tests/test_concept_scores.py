"""Scores of nodes against brute force over all thresholds, planted nodes, and chance."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_model
from transformer_lens import HookedTransformer

from tl_sparse import concepts, data
from tl_sparse.concepts import ConceptConfig, ConceptReport, activations
from tl_sparse.concepts.activations import level_edges, parts_in_groups, site_places
from tl_sparse.concepts.counting import count_levels
from tl_sparse.concepts.labelling import LabelledTokens, label_tokens
from tl_sparse.concepts.run import own_shares
from tl_sparse.concepts.scoring import best_rules, score_rules
from tl_sparse.data import train_tokenizer
from tl_sparse.sites import site_map

CONFIG = ConceptConfig(n_tokens=4800, n_unscored=2, min_positives=5)


@pytest.fixture(scope="module")
def model(corpus):
    model = make_model(d_vocab=corpus.d_vocab)
    model.set_tokenizer(corpus.tokenizer)
    return model


@pytest.fixture(scope="module")
def report(model, texts):
    return concepts.score(model, texts, CONFIG, progress=False)


def counts_of(values, labels, edges, n_levels):
    levels = torch.searchsorted(edges.contiguous(), values.contiguous()).to(torch.uint8)
    ones = torch.ones(1, labels.shape[1], dtype=torch.bool)
    columns = np.ascontiguousarray(torch.cat([labels, ones]).T.float().numpy())
    return count_levels(levels, columns, n_levels)


def f1(said, truth):
    hits = sum(a and b for a, b in zip(said, truth, strict=True))
    return 2 * hits / max(sum(said) + sum(truth), 1)


def brute_force_f1(values, truth):
    """The highest F1 of any threshold in any direction."""
    best = 0.0
    for t in [*values, min(values) - 1]:
        above = [v > t for v in values]
        best = max(best, f1(above, truth), f1([not a for a in above], truth))
    return best


def brute_force_auroc(values, truth):
    positive = [v for v, t in zip(values, truth, strict=True) if t]
    negative = [v for v, t in zip(values, truth, strict=True) if not t]
    won = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    return won / (len(positive) * len(negative))


def entropy(*counts):
    total = sum(counts)
    return -sum(c / total * math.log2(c / total) for c in counts if c)


@pytest.fixture(scope="module")
def small():
    """Values of 6 nodes and labels of 3 concepts, for two halves; zeros and ties among the values.

    The last node has one value, the one before it two.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 220, generator=generator)
    values[1] = values[1].round(decimals=1)
    values[2].clamp_(min=0)
    values[3, values[3].abs() < 1] = 0
    values[4] = (values[4] > 0).float()
    values[5] = 3.0
    labels = torch.rand(3, 220, generator=generator) < torch.tensor([[0.5], [0.1], [0.8]])
    labels[0] |= values[0] > 0.5
    labels[1] |= values[3] < -1.5
    return values[:, :120], labels[:, :120], values[:, 120:], labels[:, 120:]


@pytest.mark.parametrize("n_levels", [256, 8])
def test_thresholds_and_scores_are_those_of_brute_force(small, n_levels):
    values, labels, held, held_labels = small
    edges = level_edges(values, n_levels)
    chosen = counts_of(values, labels, edges, n_levels)
    rules = best_rules(chosen)
    scores = score_rules(counts_of(held, held_labels, edges, n_levels), rules, edges)
    if n_levels < 256:  # brute force on what is left of the values
        values, held = (torch.searchsorted(edges, v.contiguous()).float() for v in (values, held))
        edges = torch.arange(n_levels - 1).float().expand(6, -1)
        scores = score_rules(counts_of(held, held_labels, edges, n_levels), rules, edges)
    for c in range(3):
        for n in range(6):
            truth = labels[c].tolist()
            best = brute_force_f1(values[n].tolist(), truth)
            assert rules.f1[c, n] == pytest.approx(best)
            said = (held[n] > scores.threshold[c, n]).tolist()
            if not scores.above[c, n]:
                said = [not s for s in said]
            check_one(scores, c, n, said, held_labels[c].tolist())
            auroc = brute_force_auroc(held[n].tolist(), held_labels[c].tolist())
            if n_levels < 256:
                expected = auroc if scores.above[c, n] else 1 - auroc
                assert scores.auroc[c, n] == pytest.approx(expected)


def check_one(scores, c, n, said, truth):
    hits, total = sum(a and b for a, b in zip(said, truth, strict=True)), len(truth)
    assert scores.precision[c, n] == pytest.approx(hits / max(sum(said), 1))
    assert scores.recall[c, n] == pytest.approx(hits / sum(truth))
    assert scores.f1[c, n] == pytest.approx(f1(said, truth))
    always = f1([True] * total, truth)
    assert scores.gain[c, n] == pytest.approx((f1(said, truth) - always) / (1 - always))
    cells = [sum(s == a and t == b for s, t in zip(said, truth, strict=True))
             for a in (0, 1) for b in (0, 1)]  # fmt: skip
    expected = entropy(sum(said), total - sum(said)) + entropy(sum(truth), total - sum(truth))
    assert scores.information[c, n] == pytest.approx(expected - entropy(*cells), abs=1e-9)


def test_auroc_on_the_tokens_of_the_edges_is_exact(small):
    values, labels, _, _ = small
    edges = level_edges(values, 256)
    counts = counts_of(values, labels, edges, 256)
    scores = score_rules(counts, best_rules(counts), edges)
    for c in range(3):
        for n in range(6):
            expected = brute_force_auroc(values[n].tolist(), labels[c].tolist())
            expected = expected if scores.above[c, n] else 1 - expected
            assert scores.auroc[c, n] == pytest.approx(expected)


def test_few_distinct_values_have_a_level_each_and_many_are_spread_out():
    few = torch.tensor([[3.0, 0.0, 0.0, -1.0, 3.0, 2.0] * 5])
    edges = level_edges(few, 8)[0]
    # Not sampled: -2, -0.5, 1, 2.5, 4. Levels: below -1, -1, 0, up to 2, up to 3, above 3.
    found = torch.searchsorted(edges, torch.tensor([-2, -1, -0.5, 0, 1, 2, 2.5, 3, 4])).tolist()
    assert found[:4] == [0, 1, 1, 2]
    assert found[4] == found[5] < found[6] == found[7] < found[8]
    for n in (1, 252):  # the most that n_levels promises, on one side of zero
        values = torch.arange(1.0, n + 1)[None]
        found = torch.searchsorted(level_edges(values, 256), values)
        assert len(set(found[0].tolist())) == n
    many = torch.cat([torch.zeros(1, 5000), torch.arange(1, 1001).float()[None]], dim=1)
    edges = level_edges(many, 102)[0]
    assert edges[0] < 0
    assert edges[-1] == 1000
    assert 0 in edges
    gaps = edges.diff()
    assert gaps.min() >= 0
    assert gaps.max() <= 1000 / 49 + 1
    assert 998 in edges  # finer towards the ends
    assert 2 in edges


@pytest.mark.parametrize("n_levels", [256, 33, 8])
@pytest.mark.parametrize("seed", range(4))
def test_a_node_and_its_negative_have_the_same_scores(n_levels, seed):
    """Over random nodes with spikes, ties, one sign and few values, also outside the sample."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(60, 2000, generator=generator)
    values[10:20, values[0] < 1] = 0
    values[20:30] = values[20:30].round(decimals=1)
    values[30:40] = values[30:40].sign() * (values[30:40].abs() > 2)
    values[40:45] = values[40:45].abs() + 1
    values[45:50] = values[45:50].clamp(min=1.5)
    values[50:55, :1500] = 0  # nothing but zero in the sample and where thresholds are chosen
    labels = torch.rand(5, 2000, generator=generator) < torch.tensor([[0.5, 0.1, 0.02, 0.9, 0.1]]).T
    labels[4] |= values[30] < 0
    chosen, held = slice(0, 1000), slice(1000, 2000)
    scores, told = [], []
    for nodes in (values, -values):
        edges = level_edges(nodes[:, 400:800], n_levels)
        rules = best_rules(counts_of(nodes[:, chosen], labels[:, chosen], edges, n_levels))
        counts = counts_of(nodes[:, held], labels[:, held], edges, n_levels)
        scores.append(score_rules(counts, rules, edges))
        known = counts_of(nodes[:, chosen], labels[:, chosen], edges, n_levels)
        told.append(score_rules(known, rules, edges).auroc != 0.5)  # else no direction is better
    assert torch.equal(*told)
    assert told[0].float().mean() > 0.85
    for name in ("f1", "precision", "recall", "gain", "information", "chosen_f1", "auroc"):
        one, other = (getattr(each, name)[told[0]] for each in scores)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def rare_model():
    """A model whose first channel is 1 at `lambda` and 0 elsewhere, and texts that have few."""
    common, rare = "x = abc + 1\n" * 6, "f = lambda: 1\n" * 6
    texts = [common] * 400
    tokenizer = train_tokenizer([common, rare], vocab_size=280)
    model = make_model(d_vocab=len(tokenizer), n_layers=1)
    model.set_tokenizer(tokenizer)
    for i in range(23, 400, 6):
        texts[i] = rare
    ids = set(tokenizer.encode(rare)) - set(tokenizer.encode(common))
    with torch.no_grad():
        model.W_E.zero_()
        model.W_E[list(ids), 0] = 1.0
    return model, texts


@pytest.mark.parametrize("scale", [1, -1, -1e-30])
def test_a_node_that_the_sample_sees_at_zero_only_is_scored_as_well_as_any(
    rare_model, scale, monkeypatch
):
    model, texts = rare_model
    config = ConceptConfig(n_tokens=10_000, n_unscored=0, batch_size=4)
    coders = {"hook_embed": lambda x: scale * x[..., :1]}
    found = []
    for n_sample in (10**6, 1):  # all tokens, or a few windows without any lambda
        monkeypatch.setattr(activations, "N_SAMPLE", n_sample)
        report = concepts.score(model, texts, config, coders=coders, progress=False)
        found.append(next(row for row in report.concepts if row.concept == "lambda"))
    assert found[0] == found[1]
    assert found[0].f1 > 0.5 > 2 * found[0].always_f1
    assert found[0].above == (scale > 0)


def test_the_sample_is_from_all_parts_of_the_text_and_every_token_has_its_place(monkeypatch):
    monkeypatch.setattr(activations, "N_SAMPLE", 100)
    half = torch.zeros(1010, dtype=torch.long)
    half[200:300] = -1  # windows that nobody scores
    half[::10] = -1
    text = LabelledTokens(torch.arange(1010), torch.zeros(0, 1010, dtype=torch.bool), half, 2, 0)
    batches, n_sampled = activations._batches(text, 20, 3)
    starts = torch.cat([batch.tokens[:, 0] for batch in batches[:n_sampled]])
    assert starts.tolist() == [0, 160, 420, 580, 740, 900]  # 8 windows apart, of those scored
    scored = (half >= 0).nonzero()[:, 0]
    found = torch.full_like(scored, -1)
    for batch in batches:
        found[batch.place] = batch.tokens.flatten()[batch.scored]
    assert torch.equal(found, scored)
    assert sum(batch.tokens.numel() for batch in batches) == 1010 - 100


def test_groups_hold_every_node_once_and_no_more_than_fit(model):
    places = site_places(model)
    for size in (1, 7, 64, 10**6):
        groups = parts_in_groups(places, size)
        assert all(sum(p.stop - p.start for p in parts) <= size for parts in groups)
        nodes = [(p.place.name, i) for parts in groups for p in parts
                 for i in range(p.start, p.stop)]  # fmt: skip
        assert nodes == [(p.name, i) for p in places for i in range(p.width)]


def test_every_node_of_every_site_is_scored(model, report):
    sites = site_map(model)
    assert dict(report.places) == {str(info.site): info.width for info in sites.sites}
    assert report.n_nodes == sites.n_nodes == len(report.n_tracked)
    assert report.pairs is not None
    assert report.pairs.f1.shape == (len(report.concepts), report.n_nodes)
    assert report.node_name(33) == "0.q.1"
    with pytest.raises(IndexError, match="numbered from 0"):
        report.node_name(report.n_nodes)


def test_scores_are_those_of_activations_read_one_by_one(model, texts, report):
    """The best node's F1, precision and recall, from a cache and the labels alone."""
    stream = label_tokens(texts, model.tokenizer, CONFIG.n_tokens)
    stream = stream.cut(model.cfg.n_ctx, CONFIG.n_unscored)
    n_ctx, names = model.cfg.n_ctx, concepts.names()
    for row in report.concepts[:4]:
        site, _, channel = row.node.rpartition(".")
        hook = next(i.hook_name for i in site_map(model).sites if str(i.site) == site)
        windows = stream.tokens[: len(stream.tokens) // n_ctx * n_ctx].view(-1, n_ctx)
        _, cache = model.run_with_cache(windows, names_filter=hook)
        node = cache[hook].flatten(2)[:, :, int(channel)].flatten()
        said = ((node > row.threshold) == row.above).tolist()
        mine = [i for i, half in enumerate(stream.half.tolist()) if half == 1]
        assert max(mine) < len(said)
        truth = stream.labels[names.index(row.concept)]
        hits = sum(said[i] and bool(truth[i]) for i in mine)
        assert row.n_positive == sum(bool(truth[i]) for i in mine)
        assert row.precision == pytest.approx(hits / max(1, sum(said[i] for i in mine)), abs=0.02)
        assert row.recall == pytest.approx(hits / row.n_positive, abs=0.02)


def test_groups_of_nodes_make_no_difference(model, texts, report):
    config = ConceptConfig(**{**vars(CONFIG), "max_bytes": 5_000_000})
    again = concepts.score(model, texts, config, progress=False)
    assert again.pairs is not None
    assert report.pairs is not None
    for name in ("f1", "auroc", "information", "threshold"):
        torch.testing.assert_close(getattr(again.pairs, name), getattr(report.pairs, name))
    assert again.n_tracked == report.n_tracked


def number_model():
    """A model whose attn_in channel 0 is positive at digits and negative elsewhere."""
    texts = [f"a = {i}\nbc = a + {i * 7}\n" for i in range(400)]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    model = make_model(d_vocab=len(tokenizer), n_layers=1, positional_embedding_type="none")
    model.set_tokenizer(tokenizer)
    with torch.no_grad():
        model.W_E.normal_(generator=torch.Generator().manual_seed(0))
        for index in range(len(tokenizer)):
            is_number = str(tokenizer.decode([index]))[-1:].isdigit()
            model.W_E[index, 0] = 2.0 if is_number else -2.0
    return model, texts


def test_a_planted_node_is_found_with_f1_one():
    model, texts = number_model()
    report = concepts.score(model, texts, CONFIG, progress=False)
    row = next(row for row in report.concepts if row.concept == "number")
    assert row.node == "0.attn_in.0"
    assert (row.f1, row.precision, row.recall, row.gain) == (1.0, 1.0, 1.0, 1.0)
    assert row.auroc == 1.0
    assert row.above
    assert row.n_nodes >= 1
    assert row.chance_gain < 0.3
    assert report.n_tracked[0] >= 1
    assert report.best_concept[0] == "number"
    assert report.pairs is not None
    bits = report.pairs.information[:, 0]
    assert report.monosemanticity[0] == pytest.approx(bits.max() / bits.sum())
    assert report.purity[0] == pytest.approx(bits.max() / bits.sum() / row.own_share)
    p = row.n_positive / report.provenance["n_tokens"][1]
    assert bits.max() == pytest.approx(entropy(p, 1 - p))


def test_on_shifted_labels_the_best_of_all_nodes_is_at_chance():
    model, texts = number_model()
    report = concepts.score(model, texts, CONFIG, progress=False)
    assert sum(report.n_tracked) > 0
    # These texts all look alike, so a shift can fall on a period; most concepts are at chance.
    gains = sorted(row.chance_gain for row in report.concepts)
    assert gains[len(gains) // 2] < 0.15


def test_labels_of_another_text_give_chance(model, texts):
    noise = torch.Generator().manual_seed(5)
    values = torch.randn(200, 4000, generator=noise)
    labels = torch.rand(3, 4000, generator=noise) < 0.2
    edges = level_edges(values, 256)
    rules = best_rules(counts_of(values[:, :2000], labels[:, :2000], edges, 256))
    held = counts_of(values[:, 2000:], labels[:, 2000:], edges, 256)
    scores = score_rules(held, rules, edges)
    best = rules.f1.argmax(1)
    assert all(abs(scores.gain[c, int(n)]) < 0.05 for c, n in enumerate(best))
    assert abs(scores.auroc - 0.5).mean() < 0.02
    assert (scores.gain >= 0.5).sum() == 0


def test_latents_are_scored_in_place_of_nodes(model, texts, report):
    hook = "blocks.1.mlp.hook_post"
    as_function = concepts.score(
        model, texts, CONFIG, coders={hook: lambda x: x[..., 3:7] * 2}, progress=False
    )
    sae = SimpleNamespace(encode=lambda x: x[..., 3:7] * 2)
    as_object = concepts.score(model, texts, CONFIG, coders={hook: sae}, progress=False)
    assert dict(as_function.places) == {hook: 4}
    assert as_object == as_function
    start = list(report.places).index("1.mlp_neuron")
    start = sum(list(report.places.values())[:start]) + 3
    assert as_function.pairs is not None
    assert report.pairs is not None
    torch.testing.assert_close(as_function.pairs.f1, report.pairs.f1[:, start : start + 4])


def test_a_stock_model_is_scored_too(texts, corpus):
    cfg = make_model(d_vocab=corpus.d_vocab, use_attention_sinks=False).cfg
    stock = HookedTransformer(cfg, tokenizer=corpus.tokenizer)
    report = concepts.score(stock, texts[:60], CONFIG, progress=False)
    assert report.n_nodes == site_map(stock).n_nodes


def test_a_concept_that_is_too_rare_is_left_out_by_name(report):
    scored = {row.concept for row in report.concepts}
    assert scored.isdisjoint(report.left_out)
    assert scored | set(report.left_out) == set(concepts.names())
    assert "docstring" in report.left_out  # generated programs have none


def test_a_report_comes_back_from_json_without_its_pairs(report, tmp_path):
    report.save(tmp_path / "report.json")
    again = ConceptReport.load(tmp_path / "report.json")
    assert again == report
    assert again.pairs is None
    assert again.summary() == report.summary()
    assert str(again).count("\n") == len(report.concepts)


def test_a_concepts_own_share_counts_what_others_say_of_it():
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(4000, generator=generator) < 0.5
    other = torch.rand(4000, generator=generator) < 0.5
    shares = own_shares(torch.stack([one, one, other], dim=1).float())
    assert shares.tolist() == pytest.approx([0.5, 0.5, 1.0], abs=5e-3)


def test_curves_count_nodes_by_concepts_tracked(report):
    by_hand = [
        (k, sum(n >= k for n in report.n_tracked) / report.n_nodes)
        for k in range(max(report.n_tracked) + 1)
    ]
    assert report.at_least() == by_hand


def test_figures_and_tables_name_every_arm(report):
    reports = {"sparse": report, "dense": report}
    for drawn in (concepts.draw_tracked(reports), concepts.draw_best(reports)):
        assert "sparse" in drawn
        assert "dense" in drawn
    table = concepts.best_nodes_table(reports).splitlines()
    assert len(table) == 2 + len(report.concepts)
    assert table[0] == "| concept | tokens | always | sparse | dense | shifted |"
    assert report.concepts[0].node in table[2]
    assert f"| nodes | {report.n_nodes} | {report.n_nodes} |" in concepts.arms_table(reports)


def test_the_corpus_validation_side_is_read(model, corpus):
    config = ConceptConfig(n_tokens=1500, n_unscored=0, min_positives=1)
    report = concepts.score(model, corpus, config, progress=False)
    assert report.provenance["corpus"] == corpus.hash
    assert sum(report.provenance["n_tokens"]) <= 1500


def test_what_cannot_work_is_refused_before_any_work(model, texts):
    with pytest.raises(ValueError, match=r"n_levels is an integer in \[8, 256\], got 7"):
        ConceptConfig(n_levels=7)
    with pytest.raises(ValueError, match="threshold is a number"):
        ConceptConfig(threshold=0)
    with pytest.raises(ValueError, match="smaller than the model's windows of 16, got 16"):
        concepts.score(model, texts, ConceptConfig(n_unscored=16))
    with pytest.raises(ValueError, match="the model needs a tokenizer"):
        concepts.score(make_model(), texts, CONFIG)
    with pytest.raises(ValueError, match="no hook point nowhere"):
        concepts.score(model, texts, CONFIG, coders={"nowhere": abs}, progress=False)
    with pytest.raises(ValueError, match="A coder is a function"):
        concepts.score(model, texts, CONFIG, coders={"blocks.0.hook_mlp_out": 3}, progress=False)
    with pytest.raises(ValueError, match=r"a coder for each of some hook points, got none.*None"):
        concepts.score(model, texts, CONFIG, coders={}, progress=False)
    for name in ("blocks.0.hook_mlp_in", "blocks.0.attn.hook_result"):
        with pytest.raises(ValueError, match=f"nothing passes {name} in this model. Name one of"):
            concepts.score(model, texts, CONFIG, coders={name: abs}, progress=False)
    for n_heads in (2, 3):  # as many heads as positions are no positions
        other = make_model(d_vocab=model.cfg.d_vocab, n_heads=n_heads)
        other.set_tokenizer(model.tokenizer)
        coders = {"blocks.0.attn.hook_pattern": abs}
        with pytest.raises(ValueError, match=r"channel\] or .*hook_pattern \[2, \d\] tokens give"):
            concepts.score(other, texts, CONFIG, coders=coders, progress=False)
    for coder, given in ((lambda x: x.flatten(0, 1), r"\[4, 32\]"), (lambda x: (x, x), "tuple")):
        with pytest.raises(ValueError, match=rf"one at hook_embed gave {given}. Let it give a row"):
            concepts.score(model, texts, CONFIG, coders={"hook_embed": coder}, progress=False)
    with pytest.raises(
        ValueError, match="No concept holds, and fails, at 100000 tokens of each half"
    ):
        concepts.score(
            model,
            texts,
            ConceptConfig(min_positives=100_000, n_unscored=0, n_tokens=2000),
            progress=False,
        )


def test_activations_that_are_no_numbers_are_refused(texts, corpus):
    model = make_model(d_vocab=corpus.d_vocab, n_layers=1)
    model.set_tokenizer(corpus.tokenizer)
    with torch.no_grad():
        model.W_E.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        concepts.score(model, texts, CONFIG, progress=False)


def test_generated_programs_have_most_concepts():
    programs = list(data.generate_programs(50, seed=1))
    found = set().union(*(concepts.spans(text) for text in programs))
    assert len(found) >= 30


def test_other_thresholds_count_from_the_gains_and_need_them(report, tmp_path):
    assert report.pairs is not None
    assert report.tracked_at(0.5) == report.n_tracked
    assert report.tracked_at(0.5, by_chance=True) == report.n_tracked_by_chance
    by_hand = tuple(sum(g >= 0.1 for g in gains) for gains in report.pairs.gain.T.tolist())
    assert report.tracked_at(0.1) == by_hand
    table = concepts.thresholds_table({"sparse": report}, (0.1, 0.5)).splitlines()
    share = sum(n > 0 for n in by_hand) / report.n_nodes
    assert table[2].startswith(f"| 0.1 | {share:.1%} (")
    report.save(tmp_path / "report.json")
    with pytest.raises(ValueError, match="read from a file has one threshold only"):
        ConceptReport.load(tmp_path / "report.json").at_least(0.1)

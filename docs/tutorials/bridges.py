# %% [markdown]
# # Steering a dense model through bridges
#
# A bridge joins the residual streams of a sparse and a dense model. A node of the sparse model, which
# can be read, then becomes a direction in the dense one, which can be pushed. Here the zoo's dense
# control is made to close a string with the other quote.

# %%
from tl_sparse import HookedSparseTransformer, TrainingConfig, data, tasks, zoo
from tl_sparse.bridges import (
    fit_bridges,
    rank_nodes,
    read_limits,
    read_nodes,
    strength_curve,
    train_bridged,
)
from tl_sparse.nodes import Node
from tl_sparse.presets import DEMO_SPARSITY, demo_shape

pair = zoo.load("python-tiny")
dense, sparse = pair.control, pair.sparse
corpus = data.python_corpus(
    n_characters=1_000_000, tokenizer=dense.tokenizer, dialect="tasks", progress=False
)
task = tasks.get("single_double_quote", tokenizer=dense.tokenizer)
dense

# %% [markdown]
# ## Bridges between two trained models
#
# The two were never tied to each other. Linear maps between their streams are found in seconds.

# %%
bridges = fit_bridges(dense, sparse, corpus, n_tokens=100_000, progress=False)
bridges

# %% [markdown]
# ## How far can a push get?
#
# Before any node is chosen: the dense model's own difference between the two prompts of a pair is added
# where each sublayer reads (`own`), and what the sparse model's difference becomes behind the bridge
# (`decoded`). P is the probability of the other prompt's answer, of the two answers.

# %%
limits = read_limits(
    dense, sparse, bridges, task, strengths=(0.0, 0.5, 1.0), among="answers", progress=False
)
for limit in limits:
    p = f"P {limit.own[0]:.2f} -> own {limit.own[-1]:.2f}, decoded {limit.decoded[-1]:.2f}"
    print(f"{limit.site}: {p}, random {limit.random[-1]:.2f}, cosine {limit.cosine:.2f}")

# %% [markdown]
# Only where the kind of quote is still to be read can a push work: the last MLP reads the stream too
# late to matter here, and the first attention moves little.
#
# ## One node
#
# The nodes that the sparse model's circuit reads, each tried on validation pairs; the best on test
# pairs. Beside it stand pushes of the same length in random directions, and the push backwards.

# %%
circuit = pair.circuits["sparse"]["single_double_quote"]
ranked = rank_nodes(
    dense, sparse, bridges, task, read_nodes(circuit),
    strengths=(0.0, 1.0), among="answers", progress=False,
)  # fmt: skip
for curve in ranked[:4]:
    print(f"{curve.node:14} P at strength 1: {curve.probability[-1]:.3f}")

# %% [markdown]
# Strength 1 is the whole difference of the node between the two prompts, the end of the paper's scale.
# Here it takes more, and a push so long does something in random directions too.

# %%
curve = strength_curve(
    dense, sparse, bridges, task, Node.parse(ranked[0].node),
    strengths=(0.0, 0.5, 1.0, 2.0, 3.0, 4.0), among="answers", n_random=2, progress=False,
)  # fmt: skip
curve

# %%
for strength, p, random, back in zip(
    curve.strengths, curve.probability, curve.random, curve.reverse, strict=True
):
    print(f"{strength:4.1f}  steered {p:.2f}  random {random:.2f}  backwards {back:.2f}")
print(f"the other prompt itself {curve.counterfactual:.2f}")

# %% [markdown]
# Several nodes of one read can be moved together, here all that the circuit has at the best one's:

# %%
beside = [node for node in read_nodes(circuit) if node.site == Node.parse(curve.node).site]
together = strength_curve(
    dense, sparse, bridges, task, beside,
    strengths=(0.0, 1.0, 2.0), among="answers", n_random=2, progress=False,
)  # fmt: skip
for strength, p, random in zip(
    together.strengths, together.probability, together.random, strict=True
):
    print(f"{strength:4.1f}  steered {p:.2f}  random {random:.2f}")

# %% [markdown]
# ## Among all tokens
#
# The paper's probabilities may be among all tokens. Ask first how sure the dense model is: behind these
# prompts the string may as well go on, and even the other prompt itself does not get near one half.

# %%
curve = strength_curve(
    dense, sparse, bridges, task, Node.parse(curve.node),
    strengths=(0.0, 4.0), n_random=0, progress=False,
)  # fmt: skip
p = f"{curve.probability[0]:.3f} -> {curve.probability[-1]:.3f}"
print(f"{p}; the other prompt itself: {curve.counterfactual:.3f}")

# %% [markdown]
# ## Training both together
#
# The paper trains the sparse model from scratch, with its bridges, for hybrids of the two to answer as
# the dense one does. Forty steps give nothing to steer by; after a hundred times as many the nodes of
# one read turn the answer ([results](../results/bridges.md)).

# %%
fresh = HookedSparseTransformer(
    demo_shape(dense.cfg.d_vocab, width=64), tokenizer=dense.tokenizer, sparsity=DEMO_SPARSITY
)
settings = TrainingConfig(n_tokens=40_960, batch_size=8, eval_every=20, n_eval_windows=8)
bridges, history = train_bridged(fresh, dense, corpus, settings, progress=False)
for name in ("validation_loss", "encoder_nmse", "decoder_nmse", "kl_into_dense"):
    print(f"{name:16}{history.records[-1][name]:.3f}")

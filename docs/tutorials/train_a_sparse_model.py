# %% [markdown]
# # Train your first sparse model
#
# A transformer whose weights are almost all zero *while it is trained*. Here a very small one, in a
# minute on a laptop: two layers, 64 channels, generated Python.

# %%
from tl_sparse import HookedSparseTransformer, SparsityConfig, TrainingConfig, data, train

corpus = data.python_corpus(generated_fraction=1.0, n_characters=1_500_000, vocab_size=512)
corpus

# %% [markdown]
# ## The model
#
# The shape is TransformerLens' own configuration. `SparsityConfig` says what is sparse: here 5 % of
# each weight matrix of the blocks, and of the activations a quarter at each site, those of largest
# magnitude (AbsTopK). The bigram table and attention sinks are the paper's: what can be said from
# the last token alone needs no circuit.

# %%
cfg = {
    "n_layers": 2,
    "d_model": 64,
    "d_head": 16,
    "d_mlp": 256,
    "n_ctx": 64,
    "d_vocab": corpus.d_vocab,
    "act_fn": "gelu",
    "normalization_type": "RMSPre",
    "positional_embedding_type": "none",
    "use_attention_sinks": True,
    "seed": 0,
}
sparsity = SparsityConfig(weight_density=0.05, activation_density=0.25, bigram_table=True)
model = HookedSparseTransformer(cfg, corpus.tokenizer, sparsity=sparsity)
model

# %% [markdown]
# ## Training
#
# Gradients and the optimiser's moments are dense; after each step every matrix is cut back to its
# largest entries, so a weight at zero can come back. The density falls from 1 to what was asked for
# over the first half. With `folder="my-model"` a stopped run goes on where it was.

# %%
settings = TrainingConfig(
    n_tokens=600_000, batch_size=16, learning_rate=0.01, eval_every=25, anneal="power"
)
history = train(model, corpus, settings, progress=False)
history

# %% [markdown]
# ## What came out
#
# The masked weights *are* zero in the parameters, so nothing needs to know about masks to see a
# sparse model. (`plots.plot_training(history)` and `plots.plot_density(model)` are Plotly figures of
# the same.)

# %%
model.summary()

# %%
print(model.generate("def ", max_new_tokens=60, temperature=0.7, verbose=False))

# %% [markdown]
# It is a `HookedTransformer`: caches, hooks and patching work as on any other.

# %%
logits, cache = model.run_with_cache("print('hello")
reads = cache["blocks.0.hook_attn_read"][0]
print(f"{(reads != 0).float().mean():.0%} of what attention reads is not zero")

# %% [markdown]
# `model.save("folder")` and `HookedSparseTransformer.load("folder")` keep it, masks and tokenizer
# included. Larger models do more of the [tasks](../tasks.md); the next tutorial takes one that was
# trained longer.

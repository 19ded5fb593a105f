# %% [markdown]
# # Find and read a circuit
#
# How does a transformer know which quote closes a string? Prune everything that it does not need
# for that, down to single weights, and read what is left.

# %%
from tl_sparse import PruningConfig, data, prune, references, tasks, zoo

pair = zoo.load("python-tiny")
model = pair.sparse
model

# %% [markdown]
# ## The task
#
# Pairs of prompts that differ in what decides the answer. The model has to do the task before
# anybody looks for how it does: `prune` refuses a model that answers fewer than 90 % right.

# %%
task = tasks.get("single_double_quote", tokenizer=model.tokenizer)
for example in task.examples(3):
    print(example.prompts, "->", example.answers)

# %% [markdown]
# ## What stands in for the rest
#
# A node that is cut does not vanish: it takes its mean over text. Measure the means once.

# %%
corpus = data.python_corpus(
    n_characters=400_000, tokenizer=model.tokenizer, dialect="tasks", progress=False
)
refs = references(model, corpus, n_tokens=2**17, progress=False)

# %% [markdown]
# ## Pruning
#
# First nodes, by masks that are learned; then the weights between them, likewise; then whatever can
# go alone, in pairs or in exchange. What is left is the smallest circuit found whose loss reaches
# the target.

# %%
circuit = prune(model, task, refs, PruningConfig(target_loss=0.15), progress=False)
circuit

# %% [markdown]
# `plots.plot_loss_against_edges(circuit)` draws the sizes that were tried on the way.

# %% [markdown]
# ## Reading it
#
# `explain` follows the circuit through the forward pass with the model's own weights.

# %%
print(circuit.explain(model, task))

# %% [markdown]
# The same as a page to click through, in any browser and without a network
# ([the viewer](../viewer.md)):

# %%
from tl_sparse import viewer

seen = viewer.scene(model, circuit, task, corpus, n_windows=64, progress=False)
viewer.write_viewer("quotes.html", seen)
seen

# %% [markdown]
# And as a small module of its own, which gives the same answers and prints itself as equations:

# %%
small = circuit.compile(model)
small

# %% [markdown]
# Reaching the target says that the circuit *can* do the task. Whether the model does it this way is
# [another question](is_it_true.py).

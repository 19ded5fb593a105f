# %% [markdown]
# # SAEs on the dense control
#
# What most people do to find concepts in a dense model is train sparse autoencoders on it. Here SAELens'
# SAEs are spliced into the dense control of equal loss, and their latents pruned like channels, by the
# same pruner and counted by the same rule.

# %%
import tempfile

from tl_sparse import PruningConfig, data, prune, references, tasks, zoo
from tl_sparse.sae_arm import SAESettings, load_saes, scores_table, splice, sweep_saes, sweep_table

pair = zoo.load("python-tiny")
control = pair.control
corpus = data.python_corpus(
    n_characters=400_000, tokenizer=control.tokenizer, dialect="tasks", progress=False
)
task = tasks.get("single_double_quote", tokenizer=control.tokenizer)
control

# %% [markdown]
# ## Training SAEs
#
# One SAE in each layer at the reads, writes and neurons. Two settings, each on very little text, so
# that this page is made in a minute; [SAEs on both arms](../results/saes.md) has proper ones.

# %%
grid = [
    SAESettings(architecture=architecture, l0=8, expansion=2, n_windows=500)
    for architecture in ("topk", "abstopk")
]
cells = sweep_saes(control, corpus, tempfile.mkdtemp(), grid, n_eval_windows=16, progress=False)
for row in sweep_table(cells):
    print(row)

# %% [markdown]
# The better set, by the loss with all of its SAEs spliced in (never by a circuit):

# %%
best = min(cells, key=lambda cell: cell.scores.loss_spliced)
for row in scores_table(best.scores):
    print(row)

# %% [markdown]
# ## Latents as nodes
#
# Spliced in with their errors as nodes of their own, the SAEs change nothing as long as every node is
# in. A node is a latent, and an edge a virtual weight: decoder x W x encoder.

# %%
spliced = splice(control, load_saes(best.folder))
tokens = control.to_tokens(task.examples(1)[0].prompts[0])
print(f"largest change of a logit: {(spliced(tokens) - control(tokens)).abs().max():.1e}")

# %%
refs = references(spliced, corpus, n_tokens=2**15, progress=False)
quickly = PruningConfig(target_loss=0.3, n_steps=100, edges=False, drop_one=False)
circuit = prune(spliced, task, refs, quickly, progress=False)
circuit

# %% [markdown]
# That is the node stage alone and not many steps of it; all stages take minutes, since latents are many
# and nearly all pairs of them have a virtual weight. [The SAE arm](../concepts/sae_arm.md) says how far
# such numbers can be compared with those of the other two arms.

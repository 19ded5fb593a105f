# %% [markdown]
# # Is it true? Auditing a circuit
#
# Pruning looks for something small that reaches a loss, and it is good at that: it can find circuits
# for things that a model does not do. An audit tries to prove a circuit wrong.

# %%
from tl_sparse import AuditConfig, audit, data, tasks, zoo

pair = zoo.load("python-tiny")
model, circuit = pair.sparse, pair.circuits["sparse"]["single_double_quote"]
task = tasks.get(circuit.task, tokenizer=model.tokenizer)
corpus = data.python_corpus(
    n_characters=400_000, tokenizer=model.tokenizer, dialect="tasks", progress=False
)
circuit

# %% [markdown]
# ## Six claims
#
# Is the circuit enough for the task, whatever the rest is set to? Is it needed? Does it work beside
# any part of the rest? Do its nodes do in the model what they do alone? Does it answer as the model
# does on other forms of prompt? Can anything go? Each line has a threshold, and a control where
# there is one. A claim holds if all of its lines do; nothing sums them up.

# %%
report = audit(model, circuit, task, corpus, AuditConfig.quick(), progress=False)
report

# %% [markdown]
# As text, for a terminal:

# %%
print(report)

# %% [markdown]
# ## What a failure means
#
# The circuit was found with everything else held at its *mean*. `sufficient` asks what happens under
# other values, and `same mechanism` whether its nodes take the values in the model that they take
# alone. A circuit that fails there still predicts the model under the mean, and is no account of
# what the model does elsewhere.

# %%
for finding in report.findings:
    if not finding.holds:
        print(finding)

# %% [markdown]
# ## A circuit that holds up better
#
# Prune with what is cut set to its value on *other text* in place of the mean:
# `prune(model, task, named_references("resample_corpus", ...))`, or on the command line
# `tl-sparse prune MODEL TASK --ablation resample_corpus`. Such circuits are larger and stand nearly
# every line ([audits](../results/audits.md)).
#
# ## Is there anything to find?
#
# `AuditConfig(n_control_seeds=3)` prunes the task again on other seeds, and, as controls, in the same
# model with its labels shuffled, on a nonsense task, and in models with random weights. A pruner
# that finds as small a circuit there has found nothing here.

# %%
audits = pair.audits["sparse"]
for name, one in audits.items():
    held = [claim for claim, verdict in one.verdicts().items() if verdict == "holds"]
    print(f"{name:28}{', '.join(held) or 'none'}")

# %% [markdown]
# `plots.plot_audit(report)` draws the curves behind a report.

# %% [markdown]
# # TransformerLens on a sparse model
#
# A `HookedSparseTransformer` is a `HookedTransformer`. Patching, attribution and the logit lens work as
# they do elsewhere; there is just far less to look at.

# %%
import torch
from transformer_lens import patching

from tl_sparse import tasks, zoo

pair = zoo.load("python-tiny")
model, circuit = pair.sparse, pair.circuits["sparse"]["single_double_quote"]
task = tasks.get("single_double_quote", tokenizer=model.tokenizer)
example = task.examples(1)[0]
single, double = (model.to_tokens(prompt) for prompt in example.prompts)
right, wrong = (task.answer_ids[answer] for answer in example.answers)
print(example.prompts, example.answers)

# %% [markdown]
# ## Activation patching
#
# Run the prompt with one quote, patch the residual stream of the other in, one layer and position at
# a time. 1 is the answer of the prompt that is patched in.

# %%
_, cache = model.run_with_cache(single)


def gap(logits: torch.Tensor) -> torch.Tensor:
    return logits[0, -1, right] - logits[0, -1, wrong]


low, high = gap(model(double)), gap(model(single))
patched = patching.get_act_patch_resid_pre(
    model, double, cache, lambda logits: (gap(logits) - low) / (high - low)
)
for token, effects in zip(model.to_str_tokens(single), patched.T.tolist(), strict=True):
    print(f"{token!r:12}" + "".join(f"{effect:8.2f}" for effect in effects))

# %% [markdown]
# ## Attribution
#
# Gradient times difference, for every channel that attention writes in the last layer. Under AbsTopK
# most are exactly zero on any prompt, and few of the others are large.

# %%
name = "blocks.1.hook_attn_out"
_, other = model.run_with_cache(double)
gradient = {}
with model.hooks(bwd_hooks=[(name, lambda grad, hook: gradient.update({name: grad}))]):
    gap(model(double)).backward()
scores = (gradient[name] * (cache[name] - other[name]))[0].sum(0)
print(f"{int((scores.abs() > 1e-6).sum())} of {len(scores)} channels matter")
for channel in scores.abs().topk(5).indices.tolist():
    is_in = channel in {n.channel for n in circuit.nodes if str(n.site) == "1.attn_out"}
    print(f"channel {channel:4} {scores[channel]:+.3f}  {'in the circuit' * is_in}")

# %% [markdown]
# ## Logit lens
#
# The residual stream after each sublayer, read by the unembedding. The bigram table is not in the
# stream; `cache.logit_decomposition` has it as a row, and its rows add up to the logit.

# %%
rows, labels = cache.accumulated_resid(apply_ln=True, return_labels=True, pos_slice=-1)
lens = rows[:, 0] @ model.W_U
for label, logits in zip(labels, lens, strict=True):
    print(f"{label:14}{logits[right] - logits[wrong]:+.3f}")

# %% [markdown]
# ## Only the circuit
#
# `only_circuit` leaves a circuit in and holds all else, for as long as the block lasts. Hooks and
# caches work inside it too.

# %%
from tl_sparse import only_circuit

print(f"whole model  {gap(model(single)):+.2f} {gap(model(double)):+.2f}")
with only_circuit(model, circuit):
    print(f"circuit      {gap(model(single)):+.2f} {gap(model(double)):+.2f}")

# %% [markdown]
# Where a tool's own assumption fails on a sparse model it refuses and says why;
# [the list](../concepts/tools.md) has every tool with the tests behind it.

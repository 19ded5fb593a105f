# %% [markdown]
# # Your own text and your own task
#
# Nothing here is about Python code. Take any text, train a model on it, and ask it any question that
# two prompts and two next tokens can ask. This one is about English: *the key to the cabinets **is***.

# %%
import random

from tl_sparse import (
    HookedSparseTransformer,
    PruningConfig,
    SparsityConfig,
    TrainingConfig,
    data,
    prune,
    references,
    tasks,
    train,
)

# %% [markdown]
# ## Text
#
# `data.corpus` takes a folder, a list of strings, a Hugging Face data set, or anything that can be
# gone through. A file for each document: no document is in training and validation both.

# %%
rng = random.Random(0)
NOUNS = "key cabinet dog farmer car road book friend river house child ship".split()
OTHERS = "old red small new big quiet dark good".split()


def noun(plural: bool) -> str:
    word = rng.choice(NOUNS)
    return f"{word}s" if plural else word


def sentence() -> str:
    first, second = rng.random() < 0.5, rng.random() < 0.5
    start = f"the {noun(first)}" + (f" near the {noun(second)}" if rng.random() < 0.6 else "")
    return f"{start} {'are' if first else 'is'} {rng.choice(OTHERS)} ."


texts = [" ".join(sentence() for _ in range(200)) for _ in range(200)]
corpus = data.corpus(texts, vocab_size=400, progress=False)
print(texts[0][:120])
corpus

# %% [markdown]
# ## Model

# %%
cfg = {
    "n_layers": 2, "d_model": 32, "d_head": 8, "d_mlp": 128, "n_ctx": 32, "act_fn": "gelu",
    "d_vocab": corpus.d_vocab, "normalization_type": "RMSPre", "positional_embedding_type": "none",
    "use_attention_sinks": True, "seed": 0,
}  # fmt: skip
sparsity = SparsityConfig(weight_density=0.1, activation_density=0.25, bigram_table=True)
model = HookedSparseTransformer(cfg, corpus.tokenizer, sparsity=sparsity)
settings = TrainingConfig(n_tokens=500_000, batch_size=16, learning_rate=0.01, anneal="power")
history = train(model, corpus, settings, progress=False)
history

# %% [markdown]
# ## Task
#
# A hundred pairs are enough to begin with. The two prompts of a pair differ in what decides, and each
# has its own next token. Train, validation and test are drawn from them; a JSON-lines file does as well
# (`tasks.from_jsonl`).

# %%
pairs = set()
while len(pairs) < 120:
    subject, other = rng.sample(NOUNS, 2)
    other += rng.choice(["", "s"])
    prompts = (f"the {subject} near the {other}", f"the {subject}s near the {other}")
    pairs.add((prompts, (" is", " are")))
task = tasks.from_pairs("agreement", sorted(pairs), tokenizer=corpus.tokenizer)
task

# %% [markdown]
# Every word in the middle is the same on both sides: the verb has to be right for a noun that is four
# tokens back, with another noun in between.

# %%
refs = references(model, corpus, n_tokens=2**16, progress=False)
circuit = prune(model, task, refs, PruningConfig(target_loss=0.15), progress=False)
circuit

# %% [markdown]
# `print(circuit.explain(model, task))` follows it in words, `tl-sparse view` in a browser.

# %% [markdown]
# On the command line the same, with a task in a file:
#
#     tl-sparse train --text my-texts/ --out my-model
#     tl-sparse prune my-model/checkpoint/model agreement.jsonl

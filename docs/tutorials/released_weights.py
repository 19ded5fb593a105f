# %% [markdown]
# # From OpenAI's released weights
#
# The paper's authors released their models. A folder with `beeg_config.json` and `final_model.pt` is
# read as it is; nothing in it is run (`torch.load(..., weights_only=True)`).
#
# Get them once, with their repository's links (hundreds of megabytes; not done here):
#
#     git clone https://github.com/openai/circuit_sparsity
#     # its README names the files of each model; put them into one folder, with
#     # encoder.json and vocab.bpe of the tokenizer beside them
#
# Then `HookedSparseTransformer.load_openai("that folder")`. To have something to load without a
# network, this page first writes a model *out* in their format.

# %%
import tempfile

from tl_sparse import HookedSparseTransformer, zoo

mine = zoo.load("python-tiny").sparse
folder = tempfile.mkdtemp()
mine.export_openai(folder)

# %%
model = HookedSparseTransformer.load_openai(folder)
model

# %% [markdown]
# It computes the same function, and everything else of this package works on it: tasks for its
# tokenizer, references over your text, pruning, audit, viewer.

# %%
tokens = mine.to_tokens("print('hello")
print((model(tokens) - mine(tokens)).abs().max())

# %% [markdown]
# Against recordings of the authors' own code on three small models the logits agree within 4e-5 in
# float32. Released *circuits* can be read too: `tl_sparse.released` has their layout.
# Two options of theirs are refused by name, since they are not implemented
# ([questions](../faq.md#can-i-load-the-models-that-were-released-with-the-paper)).

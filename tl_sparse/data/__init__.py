"""Text to batches of tokens: sources, a tokenizer, a cached corpus, and Python made to measure.

```python
from tl_sparse import data

corpus = data.python_corpus()                        # standard library and generated Python
corpus = data.python_corpus(dialect="tasks")         # more of what the paper's tasks ask about
corpus = data.corpus("path/to/code")                 # the .py files of a folder
corpus = data.corpus(data.PathTexts(["my.txt", "notes"]))     # files, folders, saved datasets
corpus = data.corpus(data.installed_package("numpy"), vocab_size=2048)
corpus = data.corpus(load_dataset(...)["train"])     # a Hugging Face dataset with a text column

corpus.train.batch(step, batch_size=32, n_ctx=128, seed=0)      # Int[Tensor, "batch pos"]
corpus.validation.windows(n_ctx=128, n_windows=64)
corpus.tokenizer, corpus.d_vocab, corpus.hash, corpus.train.bytes_per_token
```

Tokens stand memory-mapped in `default_cache_dir()`; a second call with the same texts opens them.
Read `sources`, `grammar`, `survey`, `corpora`, `splits`, in that order.
"""

from tl_sparse.data.cache import default_cache_dir
from tl_sparse.data.corpora import Corpus, corpus, open_cached
from tl_sparse.data.grammar import generate_program, generate_programs
from tl_sparse.data.mixture import python_corpus
from tl_sparse.data.paths import PathTexts
from tl_sparse.data.sources import (
    Document,
    documents,
    folder,
    installed_package,
    installed_python,
    standard_library,
)
from tl_sparse.data.splits import TokenSplit
from tl_sparse.tokenizer import tokenizer_hash, train_tokenizer

__all__ = [
    "Corpus",
    "Document",
    "PathTexts",
    "TokenSplit",
    "corpus",
    "default_cache_dir",
    "documents",
    "folder",
    "generate_program",
    "generate_programs",
    "installed_package",
    "installed_python",
    "open_cached",
    "python_corpus",
    "standard_library",
    "tokenizer_hash",
    "train_tokenizer",
]

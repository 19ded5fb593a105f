"""Capability, honestly: bits per byte on held-out text, beside what counting n-grams gives.

```python
from tl_sparse import capability

capability.bits_per_byte(model, corpus).per_byte
ngrams = capability.NGramModel.fit(corpus.train, corpus.d_vocab, order=5)
capability.bits_per_byte(ngrams.log_probs, corpus, n_ctx=model.cfg.n_ctx).per_byte
row = capability.capability_row("sparse", model, corpus, training=config)
capability.capability_table([row, ...])       # parameters, nonzeros, training FLOPs, bits per byte
```
"""

from tl_sparse.capability.bits import Bits, bits_per_byte, model_log_probs, token_bytes
from tl_sparse.capability.ngrams import NGramModel
from tl_sparse.capability.table import (
    CapabilityRow,
    capability_row,
    capability_table,
    training_flops,
)

__all__ = [
    "Bits",
    "CapabilityRow",
    "NGramModel",
    "bits_per_byte",
    "capability_row",
    "capability_table",
    "model_log_probs",
    "token_bytes",
    "training_flops",
]

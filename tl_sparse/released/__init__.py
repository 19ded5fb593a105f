"""The format in which the authors of the paper released their models, read and written.

A folder holds `beeg_config.json`, the options of their GPT, and `final_model.pt`, its state dict;
`encoder.json` and `vocab.bpe` beside them are the tokenizer. What a key that is absent means, and
which tensors there are, follows github.com/openai/circuit_sparsity (circuit_sparsity/inference).

Four things differ from TransformerLens and are translated exactly:

- q, k and v are one matrix, `c_attn`, and matrices stand as (output, input);
- RMS norm has float32's epsilon and layer norm 1e-5;
- AbsTopK keeps int(afrac x width) channels at each site in `afrac_loctypes`;
- with `d_pos_emb`, positions are that many channels which attention and MLP read beside the
  residual stream (`SparsityConfig.position_channels`), through norms `ln_p1` and `ln_p2`.

An option that this package has no exact counterpart for is refused by name.
"""

from tl_sparse.released.read import ReleasedModel, read_released
from tl_sparse.released.write import write_released

__all__ = ["ReleasedModel", "read_released", "write_released"]

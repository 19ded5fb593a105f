"""What training does and holds on each GPU, on paper: parameters, memory, FLOPs, traffic.

1. `Run` names a model, a recipe and a number of GPUs, with the objects that `train` takes.
2. `n_parameters` and `memory` count what is held.
3. `work` counts what one step does: for each part of it FLOPs and the bytes that go through one
   GPU's memory, operation by operation as PyTorch runs them there without a compiler;
   `all_reduce_bytes` counts what goes to the other GPUs.

All of it is checked against counts on real models (tests/test_cost.py), and makes the times of
`tl_sparse.bench.gpus`. Left out are the launch of kernels, the passes that `torch.topk` makes over
its input, the min-alive guard, validation, checkpoints and reading the data; of memory, what is
there for a moment only, above all in the widest AbsTopK, and what the allocator and CUDA hold.

Symbols: T tokens of a step on one GPU, d = d_model, m = d_mlp, a = n_heads x d_head, V = d_vocab,
L = n_layers, b = bytes of an activation (2 in half precision, 4 in float32).
"""

from dataclasses import dataclass
from typing import NamedTuple

from transformer_lens import HookedTransformerConfig

from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.functional import kept_count

COMPARISONS = 32
"""Comparisons per entry of an exact search for the k-th largest: one for each bit of a float32."""

ADAM_FLOPS = 18
"""FLOPs per parameter: 14 of Adam, and four for the norm, the scaling and the decay."""

NORMS = 300
"""Bytes moved per d_model channel of a token and layer by norms, biases and residual additions,
forward and backward. The residual stream and the norms are in float32 in any case."""

SINKS = 38
"""Times that a channel of q, k, v or the output is moved to put the sinks on and take them off."""

LOSS = 60
"""Bytes moved per vocabulary entry of a token by the bigram table, the softmax and the loss."""


@dataclass(frozen=True)
class Run:
    """A training run: the model's shape and sparsity, the recipe, and on how many GPUs.

    Raises:
        ValueError: If the shape has parts that are not counted here, or the GPUs can't share a
            batch.
    """

    shape: HookedTransformerConfig
    sparsity: SparsityConfig
    training: TrainingConfig
    n_gpus: int = 1

    def __post_init__(self) -> None:
        shape, training = self.shape, self.training
        counted = shape.normalization_type in ("RMS", "RMSPre") and shape.n_key_value_heads is None
        other = shape.attn_only or shape.gated_mlp or self.sparsity.position_channels
        if not counted or other or shape.positional_embedding_type not in ("none", "standard"):
            raise ValueError(
                "The cost model counts attention and MLP with RMS norms, positions in the stream "
                "or none; not attn_only, gated_mlp, n_key_value_heads or position_channels."
            )
        if training.batch_size % (self.n_gpus * training.gradient_accumulation):
            raise ValueError(
                f"n_gpus x gradient_accumulation must divide batch_size, got {self.n_gpus} x "
                f"{training.gradient_accumulation} and {training.batch_size}."
            )

    @property
    def n_ctx(self) -> int:
        """Tokens of a sequence."""
        return self.training.n_ctx or self.shape.n_ctx

    @property
    def n_tokens(self) -> int:
        """Tokens of a step on one GPU."""
        return self.training.batch_size * self.n_ctx // self.n_gpus

    @property
    def n_bytes(self) -> int:
        """Bytes of an activation."""
        return 4 if self.training.precision == "float32" else 2

    @property
    def widths(self) -> dict[str, int]:
        """Channels at each site of a layer."""
        d, a = self.shape.d_model, self.shape.n_heads * self.shape.d_head
        m = self.shape.d_mlp or 4 * d
        sites = {"attn_in": d, "q": a, "k": a, "v": a, "attn_out": d}
        return sites | {"mlp_in": d, "mlp_neuron": m, "mlp_out": d}

    @property
    def joint(self) -> bool:
        """Whether q, k and v are made by one product, as where weights are sparse."""
        return self.sparsity.weight_density < 1

    @property
    def products(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each product of a layer with its weights."""
        w = self.widths
        d, a, m = w["attn_in"], w["v"], w["mlp_neuron"]
        return [*([(d, 3 * a)] if self.joint else 3 * [(d, a)]), (a, d), (d, m), (m, d)]


class Work(NamedTuple):
    """What one part of a step does on one GPU."""

    flops: float
    """Multiplications and additions, or comparisons."""
    n_bytes: float
    """Read from and written to memory."""
    is_product: bool = False
    """Whether it is matrix products, in the precision of the run; else it is done in float32."""


def n_parameters(run: Run) -> dict[str, int]:
    """Count the trained parameters by part.

    Examples:
        >>> from tl_sparse.presets import demo_shape
        >>> shape = HookedTransformerConfig(**demo_shape(1024) | {"seed": None})
        >>> n_parameters(Run(shape, SparsityConfig(bigram_table=True), TrainingConfig()))
        {'block weights': 393216, 'embeddings': 262144, 'bigram table': 1048576, 'biases': 3344}
    """
    shape, layers, vocab = run.shape, run.shape.n_layers, run.shape.d_vocab
    outputs = sum(n_out for _, n_out in run.products)
    others = layers * outputs + shape.d_vocab_out
    others += layers * shape.n_heads * shape.use_attention_sinks
    others += (2 * layers + 1) * shape.d_model * (shape.normalization_type == "RMS")
    positions = shape.n_ctx * shape.d_model * (shape.positional_embedding_type == "standard")
    return {
        "block weights": layers * sum(n_in * n_out for n_in, n_out in run.products),
        "embeddings": _n_embedding_weights(run) + positions,
        "bigram table": vocab * shape.d_vocab_out * run.sparsity.bigram_table,
        "biases": others,
    }


def memory(run: Run) -> dict[str, int]:
    """Count the bytes that one GPU holds at the end of a forward pass, by part.

    Of one micro-batch: with gradient accumulation each has its share of the tokens. Every GPU holds
    the whole model.
    """
    shape, b, layers = run.shape, run.n_bytes, run.shape.n_layers
    d, a, m = shape.d_model, run.widths["v"], run.widths["mlp_neuron"]
    tokens = run.n_tokens // run.training.gradient_accumulation
    count = n_parameters(run)
    trained = sum(count.values())
    frozen = shape.n_ctx * d * (shape.positional_embedding_type == "none")
    masked = count["block weights"] + _n_embedding_weights(run)
    masked += layers * sum(n_out for _, n_out in run.products)
    copies = 3 * d * a * 4 * layers  # W_Q, W_K, W_V, their axes in the order of the product
    if b == 2:
        copies = 2 * (count["block weights"] + d * shape.d_vocab_out)
    channels, rows = _attention_size(run)
    # The stream before both norms, what attention and MLP read (in half precision each product has
    # a copy), the neurons before and after GELU; then attention's own, and with sinks its output
    # once more without their channels.
    kept = 8 * d + b * ((2 if b == 4 else _n_reads(run)) * d + 2 * m)
    kept += (4 * b * channels + 4 * shape.n_heads) * rows + b * a * shape.use_attention_sinks
    return {
        "weights": 4 * (trained + frozen),
        "masks": masked,
        "gradients": 4 * trained,
        "Adam's moments": 8 * trained,
        "copies of weights for products": copies,
        "activations": int(layers * kept * tokens),
        "AbsTopK's masks": layers * _n_ranked(run) * tokens,
        "logits and loss": 12 * shape.d_vocab_out * tokens,
    }


def work(run: Run) -> dict[str, Work]:
    """Count what one step does on one GPU, by part."""
    shape, t, b, layers = run.shape, run.n_tokens, run.n_bytes, run.shape.n_layers
    vocab, d = shape.d_vocab_out, shape.d_model
    n_micro = run.training.gradient_accumulation
    entries = n_parameters(run)["block weights"]
    ends = layers * sum(n_in + n_out for n_in, n_out in run.products)
    product = Work(2 * t * entries, b * (ends * t + entries * n_micro), is_product=True)
    ranked = layers * _n_ranked(run) * t
    return {
        "linear layers, forward": product,
        "linear layers, input gradient": product,
        "linear layers, weight gradient": product,
        "attention": _attention_work(run),
        "unembedding and loss": Work(
            6 * t * d * vocab, (3 * b * (d + vocab) + LOSS * vocab) * t, is_product=True
        ),
        "AbsTopK": Work(COMPARISONS * ranked, _abs_topk_bytes(run) * t * layers),
        "norms, biases, GELU": Work(0, _norms_bytes(run) * t * layers),
        "gradients and Adam": _optimizer_work(run),
        "projection": _projection_work(run),
    }


def _attention_work(run: Run) -> Work:
    """Two products forward; backward makes the scores again and has four more.

    q, k, v and the output are read or written once by each kernel; the sinks' channels are put on
    and taken off by kernels of their own.
    """
    channels, rows = _attention_size(run)
    tokens = run.n_tokens * run.shape.n_layers
    flops = (2 + 5) * 2 * channels * rows * run.n_ctx * rows * tokens
    sinks = SINKS * run.widths["v"] if run.shape.use_attention_sinks else 0
    return Work(flops, (12 * channels * rows + sinks) * run.n_bytes * tokens, is_product=True)


def _norms_bytes(run: Run) -> int:
    """Bytes of the operations of one token in one layer that are neither products nor AbsTopK."""
    d, a, m, b = run.shape.d_model, run.widths["v"], run.widths["mlp_neuron"], run.n_bytes
    sums = 6 * b * a if run.joint else 24 * d  # gradients of q, k, v are put together, or summed
    casts = 12 * _n_reads(run) * d if b == 2 else 0
    return NORMS * d + sums + casts + 6 * b * m


def all_reduce_bytes(run: Run) -> float:
    """Give the bytes of gradients that each GPU sends in a step, in a ring."""
    return 2 * (run.n_gpus - 1) / run.n_gpus * 4 * sum(n_parameters(run).values())


def _optimizer_work(run: Run) -> Work:
    """Casts of weights, sums of gradients, RMS, scaling, Adam, decay."""
    count, n_micro = n_parameters(run), run.training.gradient_accumulation
    trained = sum(count.values())
    per_parameter = 12 * (n_micro - 1) + 4 + 8 + 28 + 8
    casts = 12 * n_micro * (count["block weights"] + run.shape.d_vocab_out * run.shape.d_model)
    moved = per_parameter * trained + (casts if run.n_bytes == 2 else 0)
    return Work(ADAM_FLOPS * trained, moved)


def _projection_work(run: Run) -> Work:
    """The choice of the largest of every matrix, at the final densities, and their masks."""
    count, sparsity = n_parameters(run), run.sparsity
    parts = ((count["block weights"], sparsity.weight_density),
             (_n_embedding_weights(run), sparsity.embedding_density))  # fmt: skip
    chosen = [(n, density) for n, density in parts if density < 1]
    moved = sum(n * (topk_mask_bytes(density) + 11) for n, density in chosen)
    return Work(COMPARISONS * sum(n for n, _ in chosen), moved)


def topk_mask_bytes(density: float, n_bytes: int = 4) -> float:
    """Give the bytes that `topk_mask` moves per entry on a GPU: 7 passes of numbers, 27 of masks.

    Examples:
        >>> topk_mask_bytes(1 / 4)
        58.0
    """
    return 7 * n_bytes + 27 + density * (n_bytes + 8)


def abs_topk_bytes(n_bytes: int = 4) -> int:
    """Give the bytes that `abs_topk` moves per entry on a GPU, forward and backward.

    Its kernel reads the entry, and writes it and a byte that says whether it was kept; backward is
    the same the other way round.

    Examples:
        >>> abs_topk_bytes(), abs_topk_bytes(n_bytes=2)
        (18, 10)
    """
    return 2 * (2 * n_bytes + 1)


def _abs_topk_bytes(run: Run) -> float:
    """Bytes of AbsTopK for one token in one layer: behind a norm it works on float32."""
    moved = 0.0
    for site, width, _ in _ranked_sites(run):
        moved += width * abs_topk_bytes(4 if site.endswith("_in") else run.n_bytes)
    return moved


def _ranked_sites(run: Run) -> list[tuple[str, int, float]]:
    sites = [(site, n, run.sparsity.site_density(site)) for site, n in run.widths.items()]
    return [(site, n, density) for site, n, density in sites if kept_count(density, n) < n]


def _n_ranked(run: Run) -> int:
    """Channels that AbsTopK chooses from, for one token in one layer."""
    return sum(width for _, width, _ in _ranked_sites(run))


def _n_reads(run: Run) -> int:
    """Products of a layer that read the stream."""
    return 2 if run.joint else 4


def _n_embedding_weights(run: Run) -> int:
    """Entries of W_E and W_U."""
    return (run.shape.d_vocab + run.shape.d_vocab_out) * run.shape.d_model


def _attention_size(run: Run) -> tuple[int, float]:
    """Channels of all heads, and rows per token: sinks pad each head, and are one more key."""
    heads, d_head = run.shape.n_heads, run.shape.d_head
    if not run.shape.use_attention_sinks:
        return heads * d_head, 1.0
    return heads * (d_head + 8 - d_head % 8), (run.n_ctx + 1) / run.n_ctx

"""Which of several ways to the same numbers a model takes: attention, products with weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformer_lens import HookedTransformer

from tl_sparse.model.blocks import AttentionPath, SparseAttention
from tl_sparse.products import ProductPath, Products
from tl_sparse.rules import checks_itself


class ChoosingTransformer(HookedTransformer):
    """What `HookedSparseTransformer` lets one choose; abstract, it has no constructor."""

    attention: AttentionPath
    products: Products

    @checks_itself
    def set_attention(self, path: AttentionPath) -> None:
        """Choose "eager", "fused" or "auto" attention, in place."""
        if path not in ("eager", "fused", "auto"):
            raise ValueError(f'attention is one of "eager", "fused", "auto", got {path!r}.')
        self.attention = path
        for block in self.blocks:
            assert isinstance(block.attn, SparseAttention)
            block.attn.path = path

    @contextmanager
    def using_attention(self, path: AttentionPath) -> Iterator[None]:
        """Choose the attention path inside a `with` block."""
        before = self.attention
        self.set_attention(path)
        try:
            yield
        finally:
            self.set_attention(before)

    @contextmanager
    @checks_itself
    def using_products(self, path: ProductPath) -> Iterator[None]:
        """Choose how products with weights are made, inside a `with` block.

        "dense" multiplies with zeros too. "sparse" uses the live weights alone wherever that can be
        (float32 or float64 on a CPU), "auto" where it is faster, by a fixed rule; that is the
        default of a model whose weights are sparse. The results agree to rounding.
        """
        if path not in ("dense", "sparse", "auto"):
            raise ValueError(f'products is one of "dense", "sparse", "auto", got {path!r}.')
        before, self.products.path = self.products.path, path
        try:
            yield
        finally:
            self.products.path = before

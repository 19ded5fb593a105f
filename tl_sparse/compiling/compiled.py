"""`CompiledCircuit`: a circuit as a module of its own, without the model that it was found in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.circuit import Circuit
from tl_sparse.circuit_checks import check_circuit
from tl_sparse.compiling.attention import Attention
from tl_sparse.compiling.build import Builder
from tl_sparse.compiling.parts import Affine, Part, Readout, Rivals, Write, build_part
from tl_sparse.files import write_bytes
from tl_sparse.model import HookedSparseTransformer

FORMAT = "tl_sparse.compiled/1"

CHUNK = 2**14
"""Rows of the tables that are worked out at a time."""

TABLES = ("embed", "thresholds", "rest_squares", "rest_sums", "rest", "bigram")
"""Names of the tensors that have an entry for each token or position."""


class CompiledCircuit(Part):
    """A circuit as a standalone module: tokens in, answer logits out.

    It holds the weights between kept nodes, with all references folded into biases, and tables of
    what every token has in the channels that the circuit does not touch; `print` writes it out as
    equations. Made by `Circuit.compile`.

    A call computes only what its answers hang on: what comes before the first attention is looked
    up, and from the last attention on there is only the last position of each prompt.
    """

    task: str
    model_hash: str
    answers: dict[str, int]
    """The answers as text and the tokens that they are: the columns of the output."""
    stream: list[int]
    """The residual channels that the circuit reads or writes."""
    n_ctx: int
    positions: bool
    """Whether rows of the tables are tokens at positions, not tokens."""
    causal: bool
    n_edges: int
    embed: Tensor
    """[row, stream]"""
    n_sublayers: int
    """The sublayers `sublayer0`, `sublayer1`, ... in order."""
    readout: Readout

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.start: Tensor
        self.first_q: Tensor
        self.first_k: Tensor
        self.first_v: Tensor
        self.tabulate()
        self.register_load_state_dict_post_hook(_tabulate)

    def forward(
        self, tokens: Int[Tensor, "batch pos"], last: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch answer"]:
        """Give the answer logits at the position `last` of each prompt, by default its end.

        Raises:
            ValueError: If there are more than `n_ctx` tokens, or one outside of the vocabulary.
        """
        self._check(tokens)
        batch = torch.arange(len(tokens), device=tokens.device)
        last = torch.full_like(batch, tokens.shape[1] - 1) if last is None else last
        row, place = self._rows_and_places(tokens)
        stream, attentions = F.embedding(row, self.start), self.attentions()
        for i, attention in attentions.items():
            first, final = i == min(attentions), i == max(attentions)
            if first:
                k, v = F.embedding(row, self.first_k), F.embedding(row, self.first_v)
            else:
                k, v = attention.keys_and_values(stream, row)
            if final:  # from here on no position but the last is looked at
                stream, row, place = (x[batch, last][:, None] for x in (stream, row, place))
            q = F.embedding(row, self.first_q) if first else attention.queries(stream, row)
            stream = attention.write(attention.sources(q, k, v, place), stream, place)
            stream = self._until_attention(i + 1, stream, row, place)
        if not attentions:
            stream, row = (x[batch, last][:, None] for x in (stream, row))
        return self.readout(stream[:, 0], row[:, 0], tokens[batch, last])

    @torch.no_grad()
    def tabulate(self) -> None:
        """Make the tables of what hangs on a row alone: all that comes before anything is attended.

        They hold the stream at the first attention, and its queries, keys and values. They are made
        with the module; if a number in it is changed, they have to be made anew.
        """
        tables: dict[str, list[Tensor]] = {}
        for rows in torch.arange(len(self.embed), device=self.embed.device).split(CHUNK):
            row = rows[None]
            stream = self._until_attention(0, self.embed[row], row, row)
            tables.setdefault("start", []).append(stream[0])
            for attention in list(self.attentions().values())[:1]:
                q, (k, v) = attention.queries(stream, row), attention.keys_and_values(stream, row)
                for name, values in (("first_q", q), ("first_k", k), ("first_v", v)):
                    tables.setdefault(name, []).append(values[0])
        for name, chunks in tables.items():
            self.register_buffer(name, torch.cat(chunks), persistent=False)

    def everywhere(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos stream"]:
        """Give the stream after all sublayers at every position, computed part by part."""
        row, place = self._rows_and_places(tokens)
        stream = self.embed[row]
        for sublayer in self.sublayers():
            stream = sublayer(stream, row, place)
        return stream

    def _until_attention(self, i: int, stream: Tensor, row: Tensor, place: Tensor) -> Tensor:
        """Run the sublayers from the i-th on, up to the next attention."""
        for sublayer in self.sublayers()[i:]:
            if isinstance(sublayer, Attention):
                break
            stream = sublayer(stream, row, place)
        return stream

    def _rows_and_places(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Give each token's row of the tables, and the last position that it attends to."""
        n = tokens.shape[1]
        position = torch.arange(n, device=tokens.device).expand_as(tokens)
        row = tokens * self.n_ctx + position if self.positions else tokens
        return row, position if self.causal else torch.full_like(position, n - 1)

    def _check(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.n_ctx:
            raise ValueError(
                f"The circuit's model reads at most {self.n_ctx} tokens, got {tokens.shape[1]}."
            )
        n_tokens = len(self.embed) // (self.n_ctx if self.positions else 1)
        if not tokens.numel():
            return
        least, most = torch.stack(torch.aminmax(tokens)).tolist()
        if least < 0 or most >= n_tokens:
            raise ValueError(f"Tokens are from 0 to {n_tokens - 1}, got {least} to {most}.")

    def sublayers(self) -> list[Part]:
        """Give attention and MLP of each layer in order."""
        return [getattr(self, f"sublayer{i}") for i in range(self.n_sublayers)]

    def attentions(self) -> dict[int, Attention]:
        """Give the attention sublayers in which the circuit has a part, by number."""
        return {i: s for i, s in enumerate(self.sublayers()) if isinstance(s, Attention)}

    @torch.no_grad()
    def margin(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
        """Give how near the nearest choice of AbsTopK was in each prompt, padding included.

        Below the rounding error of an activation, some 1e-6 in float32, the compiled circuit and
        the model may choose differently. Infinite where no AbsTopK stands.
        """
        found = [torch.full_like(tokens[:, 0], float("inf"), dtype=self.embed.dtype)]

        def watch(module: Any, args: Any, output: Any) -> None:
            found.append(module.margin(*args).amin(-1).expand(len(tokens)))

        rivals = [m for m in self.modules() if isinstance(m, Rivals) and m.thresholds.shape[1]]
        handles = [m.register_forward_hook(watch) for m in rivals]
        try:
            self._check(tokens)
            self.everywhere(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(found).amin(0)

    # -- what it is made of -------------------------------------------------------------------

    @property
    def n_parameters(self) -> dict[str, int]:
        """Count its numbers: nonzero weights and biases of the parts, and entries of the tables."""
        counts = {"weights": 0, "biases": 0, "table entries": 0}
        for name, tensor in self.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf == "weight":
                counts["weights"] += int(tensor.count_nonzero())
            elif leaf in TABLES or (leaf == "bias" and tensor.ndim == 2 and len(tensor) > 1):
                counts["table entries"] += tensor.numel()
            else:
                counts["biases"] += int(tensor.count_nonzero())
        return counts

    @property
    def n_rivals(self) -> dict[str, int]:
        """Count the channels that are not in the circuit and yet computed, by part."""
        return {
            name: len(part.channels) - len(part.kept)
            for name, part in self.named_modules()
            if isinstance(part, Affine | Write) and part.rivals is not None
        }

    def __repr__(self) -> str:
        """One line: the task and how many numbers it is made of."""
        counts = ", ".join(f"{n:,} {name}" for name, n in self.n_parameters.items())
        return f"CompiledCircuit({self.task}: {self.n_edges} edges; {counts})"

    def __str__(self) -> str:
        """Write it out as equations."""
        from tl_sparse.compiling.equations import equations

        return equations(self)

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, whole or not at all."""
        tensors = {name: tensor.detach() for name, tensor in self.named_parameters()}
        metadata = {"format": FORMAT, "spec": json.dumps(self.spec())}
        write_bytes(path, to_bytes(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "CompiledCircuit":
        """Read from a file that `save` wrote.

        Raises:
            ValueError: If there is no such file, or it is not a whole compiled circuit.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"No compiled circuit could be read from {path}: {error}.") from None
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} is no compiled circuit of this format: {metadata.get('format')!r} in place"
                f" of {FORMAT!r}."
            )
        part = build_part(json.loads(metadata["spec"]), tensors)
        assert isinstance(part, cls)
        return part


def _tabulate(module: Any, incompatible_keys: Any) -> None:
    module.tabulate()


@torch.no_grad()
def compile_circuit(
    circuit: Circuit,
    model: HookedTransformer,
    *,
    answers: Mapping[str, int] | None = None,
    max_rivals: float = 0.5,
) -> CompiledCircuit:
    """Make a standalone module of a circuit, equal to the model with only the circuit left in.

    Args:
        circuit: A circuit whose reference values are constants.
        model: The model that it was found in.
        answers: Text and token of each answer whose logit is wanted; `prune` notes the task's.
        max_rivals: Where AbsTopK stands, the circuit competes with channels outside of it, and
            those that it feeds have to be computed. Beyond this fraction of a site nothing would be
            saved, and the circuit is refused.

    Raises:
        ValueError: If the circuit is of another model, its references are not constants, there are
            no answers, too many rivals vary, or the model has what tables can't hold.
    """
    model = _checked(circuit, model)
    answers = dict(answers or circuit.provenance.get("answers", {}))
    if not answers:
        raise ValueError(
            f"The circuit {circuit.task} does not say which answers its task has. Pass answers="
            "{text: token}, as task.answer_ids gives them."
        )
    wrong = [token for token in answers.values() if not 0 <= token < model.cfg.d_vocab_out]
    if wrong:
        raise ValueError(f"Answers are tokens below {model.cfg.d_vocab_out}, got {wrong[0]}.")
    builder = Builder(model, circuit)
    embed, sublayers = builder.embed(), builder.sublayers()
    compiled = CompiledCircuit(
        task=circuit.task,
        model_hash=circuit.model_hash,
        answers=answers,
        stream=builder.stream,
        n_ctx=model.cfg.n_ctx,
        positions=model.cfg.positional_embedding_type != "none",
        causal=model.cfg.attention_dir == "causal",
        n_edges=circuit.n_edges,
        embed=embed,
        n_sublayers=len(sublayers),
        readout=builder.readout(answers),
        **{f"sublayer{i}": part for i, part in enumerate(sublayers)},
    )
    _check_rivals(compiled, max_rivals)
    return compiled


def _checked(circuit: Circuit, model: HookedTransformer) -> HookedSparseTransformer:
    if not isinstance(model, HookedSparseTransformer):
        raise ValueError(
            f"compile knows the blocks of a HookedSparseTransformer, got a {type(model).__name__}. "
            "Load the weights into one (density 1 keeps them as they are) and prune that."
        )
    check_circuit(circuit, model)
    cfg, sparsity = model.cfg, model.sparsity
    centred = str(cfg.normalization_type).startswith("LN")
    obstacles = {
        f"positions are {cfg.positional_embedding_type}": cfg.positional_embedding_type
        not in ("none", "standard"),
        "there are position channels": sparsity.position_channels > 0,
        "AbsTopK reads behind a layer norm, whose mean changes the order": centred
        and min(sparsity.site_density("attn_in"), sparsity.site_density("mlp_in")) < 1,
        "attention is local": cfg.use_local_attn,
        "queries are normalised": bool(cfg.use_qk_norm or getattr(cfg, "use_logn_attn", False)),
        "scores or logits have a soft cap": cfg.attn_scores_soft_cap > 0
        or cfg.output_logits_soft_cap > 0,
        f"the activation {cfg.act_fn} has a norm in it": cfg.is_layer_norm_activation(),
    }
    for what, there in obstacles.items():
        if there:
            raise ValueError(
                f"The circuit can't be compiled exactly: {what}. Run it in the model instead: "
                "only_circuit(model, circuit)."
            )
    return model


def _check_rivals(compiled: CompiledCircuit, max_rivals: float) -> None:
    for name, n_rivals in compiled.n_rivals.items():
        part: Any = compiled.get_submodule(name)
        width = part.rivals.width
        if n_rivals > max_rivals * width:
            where = name.replace("sublayer", "sublayer ").replace(".", ", ")
            raise ValueError(
                f"The circuit feeds {n_rivals} of the {width} channels that compete under AbsTopK "
                f"at {where}: with so many rivals that vary (more than max_rivals={max_rivals:g}) "
                "a compiled circuit is most of the model. That is so in a model whose weights are "
                "dense. Run it in the model instead, only_circuit(model, circuit), or raise "
                "max_rivals."
            )

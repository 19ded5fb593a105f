"""What the nodes of a circuit do on text and on the task's prompts.

- On **text**: the places of the validation text where a node of the whole model is highest and
  lowest, one for each window, with the tokens around.
- On **prompts**: some pairs of the task, the value of each node at each token while only the
  circuit runs, and where the circuit's heads look.

Values are kept as whole numbers from -127 to 127 times a scale, tokens as places in a table.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.ablation import fast_attention, only_circuit
from tl_sparse.circuit import Circuit, Node, Site
from tl_sparse.data import Corpus
from tl_sparse.sites import site_map
from tl_sparse.tasks import PairTask
from tl_sparse.wording import visible

BEFORE, AFTER = 20, 4
"""Tokens that are shown before and after the place of an extreme value."""

Channels = dict[Site, list[int]]


@dataclass
class Texts:
    """A table of the texts of tokens, so that each stands in the page once."""

    model: HookedTransformer
    texts: list[str] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)

    def of(self, tokens: Sequence[int]) -> list[int]:
        """Give the places of some tokens in the table."""
        for token in tokens:
            if token not in self.places:
                self.places[token] = len(self.texts)
                self.texts.append(self._text(token))
        return [self.places[token] for token in tokens]

    def _text(self, token: int) -> str:
        tokenizer: Any = self.model.tokenizer
        return f"[{token}]" if tokenizer is None else visible(tokenizer.decode([token]))


def channels_of(nodes: Sequence[Node]) -> Channels:
    """Give the channels of each site."""
    found: Channels = defaultdict(list)
    for node in nodes:
        found[node.site].append(node.channel)
    return dict(found)


@torch.no_grad()
def values_at(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], channels: Channels
) -> dict[Site, Float[Tensor, "batch pos node"]]:
    """Run a model and give the values of some nodes at every token."""
    sites, found = site_map(model, final=True), dict[Site, Tensor]()

    def keep(activation: Tensor, hook: Any, site: Site) -> None:
        flat = activation.flatten(2)  # batch pos head_index d_head, where there are heads
        found[site] = flat[..., channels[site]].float().cpu()

    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
        (sites[site].hook_name, partial(keep, site=site)) for site in channels
    ]
    with model.hooks(fwd_hooks=hooks), fast_attention(model):
        model(tokens.to(next(model.parameters()).device), return_type=None)
    return found


def rounded(values: Sequence[float]) -> dict[str, Any]:
    """Give values as whole numbers of a scale.

    Examples:
        >>> rounded([0.0, 1.0, -0.5])
        {'scale': 1.0, 'values': [0, 127, -64]}
    """
    scale = max(map(abs, values), default=0.0)
    unit = 127 / scale if scale else 0.0
    return {"scale": scale, "values": [round(value * unit) for value in values]}


# -- text -------------------------------------------------------------------------------------


def text_examples(
    model: HookedTransformer,
    nodes: Sequence[Node],
    corpus: Corpus,
    texts: Texts,
    *,
    n_windows: int,
    n_examples: int,
    progress: bool,
) -> dict[Node, dict[str, Any]]:
    """Find where in the validation text each node is highest and lowest."""
    n_ctx = model.cfg.n_ctx
    n_windows = min(n_windows, corpus.validation.windows_per_epoch(n_ctx))
    windows = corpus.validation.windows(n_ctx=n_ctx, n_windows=n_windows)
    channels = channels_of(nodes)
    peaks = _peaks(model, windows, channels, progress)
    chosen = {
        (site, sign): some.topk(min(n_examples, n_windows), dim=0).indices
        for (site, sign), some in peaks.items()
    }
    needed = torch.unique(torch.cat([some.flatten() for some in chosen.values()]))
    examples: dict[Node, dict[str, Any]] = {
        node: {"highest": {}, "lowest": {}} for node in nodes
    }  # by rank, in whatever order the windows come
    for part in tqdm(needed.split(32), desc="examples", disable=not progress):
        values = values_at(model, windows[part], channels)
        for (site, sign), ranks in chosen.items():
            for row, window in enumerate(part.tolist()):
                for rank, column in (ranks == window).nonzero().tolist():
                    node = Node(site, channels[site][column])
                    line = values[site][row, :, column]
                    shown = _around(windows[window], line, sign, texts)
                    examples[node]["highest" if sign > 0 else "lowest"][rank] = shown
    return {
        node: {side: [some[rank] for rank in sorted(some)] for side, some in sides.items()}
        for node, sides in examples.items()
    }


def _peaks(
    model: HookedTransformer, windows: Tensor, channels: Channels, progress: bool
) -> dict[tuple[Site, int], Float[Tensor, "window node"]]:
    """Give the highest value of each node in each window, and the highest of its negative."""
    found: dict[tuple[Site, int], list[Tensor]] = defaultdict(list)
    for part in tqdm(windows.split(32), desc="text", disable=not progress):
        for site, values in values_at(model, part, channels).items():
            found[site, 1].append(values.amax(1))
            found[site, -1].append(-values.amin(1))
    return {key: torch.cat(some) for key, some in found.items()}


def _around(window: Tensor, values: Tensor, sign: int, texts: Texts) -> dict[str, Any]:
    at = int((sign * values).argmax())
    start, stop = max(0, at - BEFORE), min(len(window), at + AFTER + 1)
    shown = {"tokens": texts.of(window[start:stop].tolist()), "at": at - start}
    return shown | {"value": float(values[at])} | rounded(values[start:stop].tolist())


# -- prompts ----------------------------------------------------------------------------------


def prompt_samples(
    model: HookedTransformer,
    circuit: Circuit,
    nodes: Sequence[Node],
    task: PairTask,
    texts: Texts,
    *,
    n_pairs: int,
) -> tuple[list[dict[str, Any]], dict[Node, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Give some pairs, the values of the nodes on them, and the patterns of the circuit's heads.

    The prompts stand side A, side B of a pair, then the next pair.
    """
    n = task.n_examples("test")
    pairs = sorted({round(i * (n - 1) / max(1, n_pairs - 1)) for i in range(n_pairs)})
    # Side A of all comes first in a batch.
    order = [side * len(pairs) + i for i in range(len(pairs)) for side in (0, 1)]
    batch = task.batch("test", pairs).to(next(model.parameters()).device)
    with _running(model, circuit):
        values = values_at(model, batch.tokens, channels_of(nodes))
        margins = task.margins(task.logits(model, batch), batch).tolist()
        patterns = _patterns(model, circuit, batch.tokens)
    whole = task.margins(task.logits(model, batch), batch).tolist()
    names = {token: text for text, token in task.answer_ids.items()}
    ends = [int(batch.last[row]) + 1 for row in order]
    prompts = [
        {
            "tokens": texts.of(batch.tokens[row, :end].tolist()),
            "answer": visible(names[int(batch.correct[row])]),
            "wrong": visible(names[int(batch.wrong[row])]),
            "margin": margins[row],
            "margin_in_model": whole[row],
        }
        for row, end in zip(order, ends, strict=True)
    ]
    by_node = dict[Node, list[dict[str, Any]]]()
    places = {site: iter(range(len(some))) for site, some in channels_of(nodes).items()}
    for node in nodes:
        column = values[node.site][..., next(places[node.site])]
        scale = float(
            max(column[row, :end].abs().max() for row, end in zip(order, ends, strict=True))
        )
        unit = 127 / scale if scale else 0.0
        by_node[node] = [
            {"scale": scale, "values": [round(v * unit) for v in column[row, :end].tolist()]}
            for row, end in zip(order, ends, strict=True)
        ]
    heads = [
        {"layer": layer, "head": head, "patterns": list(_lines(pattern, order, ends))}
        for (layer, head), pattern in patterns.items()
    ]
    return prompts, by_node, heads


def _running(model: HookedTransformer, circuit: Circuit) -> Any:
    """Run the circuit alone; one found by resampling runs in its whole model."""
    return nullcontext() if circuit.resamples else only_circuit(model, circuit)


@torch.no_grad()
def _patterns(
    model: HookedTransformer, circuit: Circuit, tokens: Tensor
) -> dict[tuple[int, int], Float[Tensor, "batch query_pos key_pos"]]:
    """Give the patterns of the heads whose v is in the circuit."""
    d_head = model.cfg.d_head
    heads = sorted(
        {(n.site.layer, n.channel // d_head) for n in circuit.nodes if n.site.name == "v"}
    )
    found: dict[int, Tensor] = {}

    def keep(pattern: Tensor, hook: Any, layer: int) -> None:
        found[layer] = pattern.float().cpu()

    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
        (f"blocks.{layer}.attn.hook_pattern", partial(keep, layer=layer))
        for layer in sorted({layer for layer, _ in heads})
    ]
    with model.hooks(fwd_hooks=hooks):
        model(tokens, return_type=None)
    return {(layer, head): found[layer][:, head] for layer, head in heads}


def _lines(pattern: Tensor, order: list[int], ends: list[int]) -> Iterator[list[int]]:
    """Give each prompt's pattern in hundredths, row behind row, up to the diagonal."""
    for row, end in zip(order, ends, strict=True):
        square = (100 * pattern[row, :end, :end]).round().int()
        yield [int(x) for i in range(end) for x in square[i, : i + 1]]

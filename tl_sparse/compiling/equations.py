"""A compiled circuit written out as equations, in the order in which it computes.

Notation: `t` is the token at a position and `p` the position; `x[c]` residual channel c; `S[t]`,
`T[t]`, `A[t]` entries of tables; `top(...)` is 0 unless the channel is among AbsTopK's largest.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tl_sparse.compiling.attention import Attention, Head
from tl_sparse.compiling.parts import Affine, Constant, Mlp, Read, Rivals, Write

Terms = list[tuple[float, str]]


def equations(compiled: Any) -> str:
    """Write a `CompiledCircuit` out, one line for each number that it computes."""
    stream = compiled.stream
    what = "token t at position p" if compiled.positions else "token t"
    lines = [repr(compiled)]
    lines.append(f"x[c] = embedding of {what}, for c in {', '.join(map(str, stream))}")
    for i, part in enumerate(compiled.sublayers()):
        if isinstance(part, Constant):
            if part.added.any():
                added = _added(part.added.tolist(), stream)
                lines.append(f"sublayer {i}: nothing in the circuit; adds {added}")
            continue
        attends = isinstance(part, Attention)
        lines.append(f"sublayer {i}: {'attention' if attends else 'MLP'}")
        inner = _attention(part, stream) if attends else _mlp(part, stream)
        lines += [f"  {line}" for line in inner]
    lines.append("logits, at the last position")
    lines += [f"  {line}" for line in _readout(compiled)]
    return "\n".join(lines)


def _attention(part: Attention, stream: list[int]) -> Iterator[str]:
    reads = [f"read[{stream[i]}]" for i in part.read.channels]
    yield from _read(part.read, stream)
    names = {}
    for letter in ("q", "k", "v"):
        affine = getattr(part, letter)
        names[letter] = [f"{letter}[{affine.channels[i]}]" for i in affine.kept]
        yield from _affine(affine, letter, reads)
    sources = []
    for head in part.heads():
        yield from _head(head, names)
        sources += [f"sum_j pattern{head.head}[i,j] {names['v'][i]}[j]" for i in head.values]
        sources += [f"sum_j pattern{head.head}[i,j]"] if part.row_sums else []
    yield from _write(part.write, sources, stream, "p")


def _mlp(part: Mlp, stream: list[int]) -> Iterator[str]:
    yield from _read(part.read, stream)
    yield from _affine(part.neurons, "neuron", [f"read[{stream[i]}]" for i in part.read.channels])
    neurons = [f"neuron[{part.neurons.channels[i]}]" for i in part.neurons.kept]
    yield from _write(part.write, neurons, stream, "")


def _read(read: Read, stream: list[int]) -> Iterator[str]:
    yield from _norm(read, stream)
    for i in read.channels:
        value = _normed(read, stream, i)
        yield f"read[{stream[i]}] = {_top(value, read.rivals, 't')}"


def _norm(read: Read, stream: list[int]) -> Iterator[str]:
    if read.norm is None:
        return
    squares = " + ".join(["S[t]", *(f"x[{c}]^2" for c in stream)])
    mean = ""
    if read.norm == "LN":
        yield f"m = ({' + '.join(['M[t]', *(f'x[{c}]' for c in stream)])}) / {read.width}"
        mean = " - m^2"
    yield f"s = sqrt(({squares}) / {read.width}{mean} + {read.eps:.3g})"


def _normed(read: Read, stream: list[int], i: int) -> str:
    if read.norm is None:
        return f"x[{stream[i]}]"
    text = f"(x[{stream[i]}] - m) / s" if read.norm == "LN" else f"x[{stream[i]}] / s"
    text = text if read.gain is None else f"{read.gain[i].item():.4g} {text}"
    return text if read.shift is None else f"{text} {read.shift[i].item():+.4g}"


def _affine(part: Affine, name: str, sources: Sequence[str]) -> Iterator[str]:
    for i in part.kept:
        terms = [(w, s) for w, s in zip(part.weight[:, i].tolist(), sources, strict=True)]
        value = _sum([*terms, (part.bias[i].item(), "")])
        value = f"{part.activation}({value})" if part.activation else value
        yield f"{name}[{part.channels[i]}] = {_top(value, part.rivals, '')}"
    yield from _rivals(part, name)


def _rivals(part: Affine | Write, name: str) -> Iterator[str]:
    others = [c for i, c in enumerate(part.channels) if i not in part.kept]
    if part.rivals is not None and others:
        shown = ", ".join(map(str, others[:8])) + (", ..." if len(others) > 8 else "")
        yield f"rivals that vary: {len(others)} of {part.rivals.width} ({name} {shown})"


def _head(head: Head, names: dict[str, list[str]]) -> Iterator[str]:
    products: Terms = []
    for q, k, q_value, k_value in zip(
        head.queries, head.keys, head.query_values.tolist(), head.key_values.tolist(), strict=True
    ):
        factor = (1.0 if q >= 0 else q_value) * (1.0 if k >= 0 else k_value)
        ends = [f"{names['q'][q]}[i]"] if q >= 0 else []
        ends += [f"{names['k'][k]}[j]"] if k >= 0 else []
        products.append((factor, " ".join(ends)))
    score = _sum([*products, (head.constant.item(), "")])
    over = "j <= i" if head.causal else "all j"
    sink = "" if head.sink is None else f" and a sink of {head.sink.item():.4g}"
    yield f"pattern{head.head}[i,j] = softmax of ({score}) / {head.scale:.4g} over {over}{sink}"


def _write(part: Write, sources: Sequence[str], stream: list[int], place: str) -> Iterator[str]:
    many = len(part.bias) > 1
    for i, to in zip(part.kept, part.into, strict=True):
        terms = [(w, s) for w, s in zip(part.weight[:, i].tolist(), sources, strict=True)]
        value = _sum([*terms, *([] if many else [(part.bias[0, i].item(), "")])])
        value = f"{value} + B[{place}]" if many else value
        yield f"x[{stream[to]}] += {_top(value, part.rivals, place if many else '')}"
    if part.added.any():
        yield f"and adds {_added(part.added.tolist(), stream)}"
    yield from _rivals(part, "channels")


def _added(added: list[float], stream: list[int]) -> str:
    return _sum([(value, f"into x[{c}]") for c, value in zip(stream, added, strict=True)])


def _readout(compiled: Any) -> Iterator[str]:
    part, stream = compiled.readout, compiled.stream
    yield from _norm(part.read, stream)
    for i, answer in enumerate(compiled.answers):
        weights = part.weight[:, i].tolist()
        terms = [(w, f"({_normed(part.read, stream, j)})") for j, w in enumerate(weights) if w != 0]
        value = _sum([*terms, (part.bias[i].item(), "")])
        if part.rest is not None:
            mean = (
                f" - m ({part.rest_weight[i].item():.4g})" if part.rest_weight is not None else ""
            )
            value += f" + (A[t]{mean}) / s" if part.read.norm else " + A[t]"
        value += "" if part.bigram is None else " + bigram[t]"
        yield f"{answer!r}: {value}"


def _top(value: str, rivals: Rivals | None, index: str) -> str:
    if rivals is None:
        return value
    threshold = f"T[{index}]" if index else "T"
    return (
        f"top({value}), 0 unless one of the {rivals.n_kept} largest of {rivals.width} ({threshold})"
    )


def _sum(terms: Terms) -> str:
    """Write a sum, without what is 0."""
    text = ""
    for value, name in terms:
        if value == 0:
            continue
        sign = "-" if value < 0 else "+"
        size = f"{abs(value):.4g}"
        body = f"{size} {name}".strip() if name else size
        body = name if size == "1" and name else body
        text += f" {sign} {body}" if text else (f"-{body}" if value < 0 else body)
    return text or "0"

"""The parts of a compiled circuit: each computes a few named numbers at every position.

A part is data, tensors and plain values, and a forward pass of a few lines; `build` fills them in
from a model, `equations` writes them out. What the parts have in common:

- `row`: the token at each position (token and position, where the model has learned positions) as
  a row of the tables. What no node of the circuit touches is known for each row in advance;
- the **stream**: the residual channels that the circuit reads or writes, and no others;
- `Rivals`: AbsTopK without the channels that were cut. A channel is kept if no more than k - 1
  others are larger. Of those others some are in the circuit, or are fed by it, and are computed;
  the rest are constant for each row of a table, so the (k - j)-th largest of them, for each number
  j of computed ones that are larger, is a threshold in a table.
"""

from inspect import get_annotations
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_sparse.model import SUPPORTED_ACTIVATIONS


class Part(nn.Module):
    """A module that is data: tensors are frozen parameters, parts are parts, the rest is JSON."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.plain: dict[str, Any] = {}
        for name in get_annotations(type(self)):
            fields.setdefault(name, None)
        for name, value in fields.items():
            if isinstance(value, Tensor):
                setattr(self, name, nn.Parameter(value, requires_grad=False))
                continue
            if value is not None and not isinstance(value, nn.Module):
                self.plain[name] = value
            setattr(self, name, value)

    def spec(self) -> dict[str, Any]:
        """Give what `state_dict` does not hold, as JSON values: `build_part` reads it back."""
        parts = {
            name: part.spec() for name, part in self.named_children() if isinstance(part, Part)
        }
        return {"part": type(self).__name__, "plain": self.plain, "parts": parts}


class Rivals(Part):
    """AbsTopK among the computed channels and, through their thresholds, all others."""

    n_kept: int
    width: int
    """How many channels compete, computed and constant."""
    thresholds: Tensor
    """[row, computed]: column j is the (n_kept - j)-th largest magnitude of the constant rivals;
    -1 where there are not so many, infinite where the j computed ones fill all places."""

    def forward(
        self,
        values: Float[Tensor, "batch pos computed"],
        kept: list[int],
        row: Int[Tensor, "batch pos"],
        scale: Any = 1.0,
    ) -> Float[Tensor, "batch pos kept"]:
        """Give the kept channels, each 0 where it is not among the largest.

        `scale` divides the thresholds: the norm's, where the tables are of what it divides.
        """
        found, size = [values[..., :0]], values.abs()
        for place in kept:
            mine = size[..., place, None]
            # Of two that are equal the first is the larger, as in AbsTopK.
            n_larger = _count(size[..., :place] >= mine) + _count(size[..., place + 1 :] > mine)
            threshold = self.thresholds[self._rows(row), n_larger][..., None] / scale
            found.append(values[..., place, None] * (mine > threshold))
        return torch.cat(found, -1)

    def margin(
        self,
        values: Float[Tensor, "batch pos computed"],
        kept: list[int],
        row: Int[Tensor, "batch pos"],
        scale: Any = 1.0,
    ) -> Float[Tensor, "batch pos"]:
        """Give how near the nearest decision was: how far the last that stays is from the next."""
        size = values.abs().sort(-1, descending=True).values  # as many are larger as come before
        threshold = self.thresholds[self._rows(row)] / scale
        stays = size > threshold
        last_in = size.masked_fill(~stays, float("inf")).amin(-1)
        first_out = size.masked_fill(stays, float("-inf")).amax(-1)
        return torch.minimum((size - threshold).abs().amin(-1), last_in - first_out)

    def _rows(self, row: Tensor) -> Tensor | int:
        return row if len(self.thresholds) > 1 else 0


class Read(Part):
    """A read of the stream: norm, gain, AbsTopK, and only the channels that the circuit reads."""

    norm: str | None
    """"RMS" or "LN", or None."""
    width: int
    """d_model: the number of channels under the norm."""
    eps: float
    rest_squares: Tensor | None
    """[row]: the sum of squares of all channels outside of the stream."""
    rest_sums: Tensor | None
    """[row]: their sum, for a norm that subtracts the mean."""
    gain: Tensor | None
    """[stream]"""
    shift: Tensor | None
    """[stream]"""
    rivals: Rivals | None
    channels: list[int]
    """The channels that are read, as places in the stream."""

    def forward(
        self, stream: Float[Tensor, "batch pos stream"], row: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos read"]:
        """Give what the circuit reads."""
        mean, scale = self.statistics(stream, row)
        normed = self.normalized(stream, mean, scale)
        if self.rivals is None:
            return normed[..., self.channels]
        return self.rivals(normed, self.channels, row, scale)  # the scale is one for all channels

    def normalized(
        self, stream: Float[Tensor, "*batch_pos stream"], mean: Any, scale: Any
    ) -> Float[Tensor, "*batch_pos stream"]:
        """Give the stream after norm and gain."""
        normed = (stream - mean) / scale
        normed = normed if self.gain is None else normed * self.gain
        return normed if self.shift is None else normed + self.shift

    def statistics(
        self, stream: Float[Tensor, "*batch_pos stream"], row: Int[Tensor, "*batch_pos"]
    ) -> tuple[Any, Any]:
        """Give the mean that the norm subtracts and the scale that it divides by."""
        if self.norm is None:
            return 0.0, 1.0
        assert self.rest_squares is not None
        squares = (self.rest_squares[row] + stream.square().sum(-1)) / self.width
        if self.norm == "RMS":
            return 0.0, (squares + self.eps).sqrt()[..., None]
        assert self.rest_sums is not None
        mean = (self.rest_sums[row] + stream.sum(-1)) / self.width
        return mean[..., None], (squares - mean.square() + self.eps).sqrt()[..., None]


class Affine(Part):
    """Channels of q, k, v or neurons: what flows in from the circuit, plus a constant; AbsTopK."""

    weight: Tensor
    """[source, computed]"""
    bias: Tensor
    """[computed]: the biases, and the reference values of all that was cut, times their weights."""
    activation: str | None
    rivals: Rivals | None
    channels: list[int]
    """Names of the computed channels: their numbers at the site."""
    kept: list[int]
    """The places, among the computed, of those that are in the circuit; the others are rivals."""

    def forward(
        self, sources: Float[Tensor, "batch pos source"], row: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos kept"]:
        """Give the channels that are in the circuit."""
        values = self.before(sources)
        return values if self.rivals is None else self.rivals(values, self.kept, row)

    def before(
        self, sources: Float[Tensor, "batch pos source"]
    ) -> Float[Tensor, "batch pos computed"]:
        """Give all computed channels before AbsTopK."""
        values = F.linear(sources, self.weight.T, self.bias)
        return SUPPORTED_ACTIVATIONS[self.activation](values) if self.activation else values


class Write(Part):
    """What attention or an MLP adds to the stream: channels of attn_out or mlp_out; AbsTopK."""

    weight: Tensor
    """[source, computed]: from mixed values and sums of rows, or from neurons."""
    bias: Tensor
    """[row, computed]: one row, or one for each position where constant heads have sinks."""
    rivals: Rivals | None
    channels: list[int]
    """Names of the computed channels: their numbers in the residual stream."""
    kept: list[int]
    """The places, among the computed, of those that are in the circuit; the others are rivals."""
    into: list[int]
    """For each of these its place in the stream."""
    added: Tensor
    """[stream]: the reference values of the channels that are not in the circuit."""

    def forward(
        self,
        sources: Float[Tensor, "batch pos source"],
        stream: Float[Tensor, "batch pos stream"],
        place: Int[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos stream"]:
        """Give the stream with this sublayer added."""
        values = self.before(sources, place)
        if self.rivals is not None:
            values = self.rivals(values, self.kept, place)
        index = torch.tensor(self.into, dtype=torch.long, device=stream.device)
        return (stream + self.added).index_add(-1, index, values)

    def before(
        self, sources: Float[Tensor, "batch pos source"], place: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos computed"]:
        """Give all computed channels before AbsTopK."""
        if len(self.bias) == 1:
            return F.linear(sources, self.weight.T, self.bias[0])
        return sources @ self.weight + F.embedding(place, self.bias)


class Mlp(Part):
    """An MLP sublayer of the circuit."""

    read: Read
    neurons: Affine
    write: Write

    def forward(
        self,
        stream: Float[Tensor, "batch pos stream"],
        row: Int[Tensor, "batch pos"],
        place: Int[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos stream"]:
        """Give the stream with this sublayer added."""
        return self.write(self.neurons(self.read(stream, row), row), stream, place)


class Constant(Part):
    """A sublayer without a node of the circuit: it adds its reference values."""

    added: Tensor
    """[stream]"""

    def forward(
        self,
        stream: Float[Tensor, "batch pos stream"],
        row: Int[Tensor, "batch pos"],
        place: Int[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos stream"]:
        """Give the stream with this sublayer added."""
        return stream + self.added


class Readout(Part):
    """The answer logits: final norm, unembedding and bigram table, at the answers' columns."""

    read: Read
    """The final norm, with all of the stream read."""
    weight: Tensor
    """[stream, answer]"""
    rest: Tensor | None
    """[row, answer]: what the channels outside of the stream give, before the norm's scale."""
    rest_weight: Tensor | None
    """[answer]: the sum of their weights, for a norm that subtracts the mean."""
    bias: Tensor
    """[answer]"""
    bigram: Tensor | None
    """[token, answer]"""

    def forward(
        self,
        stream: Float[Tensor, "batch stream"],
        row: Int[Tensor, " batch"],
        token: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch answer"]:
        """Give the answer logits."""
        mean, scale = self.read.statistics(stream, row)
        logits = self.read.normalized(stream, mean, scale) @ self.weight + self.bias
        if self.rest is not None:
            rest = self.rest[row]
            rest = rest if self.rest_weight is None else rest - mean * self.rest_weight
            logits = logits + rest / scale
        return logits if self.bigram is None else logits + self.bigram[token]


def build_part(spec: dict[str, Any], tensors: dict[str, Tensor]) -> Part:
    """Make a part from `Part.spec` and the tensors of its `state_dict`.

    Raises:
        ValueError: If there is no part of that name.
    """
    kinds = {kind.__name__: kind for kind in Part.__subclasses__()}
    if spec.get("part") not in kinds:
        raise ValueError(f"A compiled circuit has no part {spec.get('part')!r}.")
    inner: dict[str, dict[str, Tensor]] = {name: {} for name in spec["parts"]}
    own = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if rest:
            inner[head][rest] = tensor
        else:
            own[name] = tensor
    parts = {name: build_part(spec["parts"][name], inner[name]) for name in spec["parts"]}
    return kinds[spec["part"]](**own, **parts, **spec["plain"])


def _count(marks: Tensor) -> Tensor:
    """Count the true entries of each row; as bytes, which takes a third of the time on a CPU."""
    return marks.view(torch.uint8).sum(-1, dtype=torch.int32)

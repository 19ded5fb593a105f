"""Random configurations of model and sparsity: valid ones work, invalid ones are `ValueError`s.

The oracle counts with exact fractions and shares no code with the package: of a tensor with `size`
entries a density of p/q keeps floor(p x size / q).
"""

import copy
import math
import traceback
from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

import tl_sparse
from tl_sparse.config import PruningConfig, SparsityConfig, TrainingConfig
from tl_sparse.model import HookedSparseTransformer

Draw = st.DrawFn
NAN, INF = float("nan"), float("inf")

ACTIVATIONS = ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "relu", "relu2",
               "solu", "solu_ln", "xielu"]  # fmt: skip
SWITCHES = ["use_attention_sinks", "use_attn_scale", "use_attn_result", "use_split_qkv_input",
            "use_attn_in", "use_hook_mlp_in", "use_hook_tokens", "use_qk_norm", "use_logn_attn",
            "attn_only", "parallel_attn_mlp", "final_rms", "scale_attn_by_inverse_layer_idx",
            "tie_word_embeddings"]  # fmt: skip
SITES = {
    "attn_in": "hook_attn_read",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "attn_out": "hook_attn_out",
    "mlp_in": "hook_mlp_read",
    "mlp_neuron": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
}
MLP_SITES = ("mlp_in", "mlp_neuron", "mlp_out")


def random_test(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# -- valid configurations ---------------------------------------------------------------------


@st.composite
def shapes(draw: Draw, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    """Values for a HookedTransformerConfig that make a model; small, odd sizes too."""
    size = st.integers(1, 9)
    shape: dict[str, Any] = {
        "n_layers": draw(st.sampled_from([1] * 8 + [2, 3])),
        "d_model": draw(size),
        "d_head": draw(st.integers(1, 5)),
        "n_heads": draw(st.integers(1, 3)),
        "d_mlp": draw(st.none() | size),
        "n_ctx": draw(st.integers(3, 7)),
        "d_vocab": draw(size),
        "d_vocab_out": draw(st.just(-1) | size),
        "act_fn": draw(st.sampled_from(ACTIVATIONS)),
        "normalization_type": draw(st.sampled_from([None, "LN", "LNPre", "RMS", "RMSPre"])),
        "attention_dir": draw(st.sampled_from(["causal", "bidirectional"])),
        "init_mode": draw(st.sampled_from(["gpt2", "gpt2", "xavier_uniform", "xavier_normal",
                                           "kaiming_uniform", "kaiming_normal", "muP"])),
        "initializer_range": draw(st.sampled_from([-1.0, -1.0, 0.02, 0.5])),
        "eps": draw(st.sampled_from([1e-5, 1e-3])),
        "attn_scores_soft_cap": draw(st.sampled_from([-1.0, -1.0, 0, 5.0])),
        "output_logits_soft_cap": draw(st.sampled_from([-1.0, -1.0, None, 2.5])),
        "clip_qkv": draw(st.sampled_from([None, None, 0.3])),
        "attn_scale": draw(st.sampled_from([-1.0, -1.0, 0.7])),
        "dtype": draw(st.sampled_from(dtypes)),
        "seed": draw(st.sampled_from([None] * 8 + [0, 2**32 - 1])),
        "device": "cpu",
    }  # fmt: skip
    bits = draw(st.integers(0, 2 ** len(SWITCHES) - 1)) & draw(st.integers(0, 2**30))
    shape |= {name: bool(bits >> i & 1) for i, name in enumerate(SWITCHES)}
    if draw(st.booleans()):  # as many heads as there is room for, which is TransformerLens' default
        shape["d_model"] = shape.pop("n_heads") * shape["d_head"]
    return shape | draw(positions(shape["d_head"])) | draw(local_attention(shape["n_layers"]))


@st.composite
def positions(draw: Draw, d_head: int) -> dict[str, Any]:
    kinds = ["standard", "shortformer", "alibi", "none"] + ["rotary"] * (d_head > 1)
    kind = draw(st.sampled_from(kinds))
    if kind != "rotary":
        return {"positional_embedding_type": kind}
    rotary_dim = 2 * draw(st.integers(1, d_head // 2))
    dynamic = rotary_dim > 2 and draw(st.booleans())
    return {
        "positional_embedding_type": kind,
        "rotary_dim": rotary_dim if rotary_dim < d_head else draw(st.sampled_from([None, d_head])),
        "rotary_base": draw(st.sampled_from([10000, 500.0])),
        "rotary_adjacent_pairs": draw(st.booleans()),
        "use_dynamic_ntk_rope": dynamic,
        "train_seq_length": draw(st.sampled_from([None, 2])),
        "use_yarn_rope": draw(st.booleans()),
        "yarn_factor": draw(st.sampled_from([1.0, 4.0])),
        "use_NTK_by_parts_rope": draw(st.booleans()),
    }


@st.composite
def local_attention(draw: Draw, n_layers: int) -> dict[str, Any]:
    if draw(st.integers(0, 3)):
        return {}
    kinds = st.lists(st.sampled_from(["global", "local"]), min_size=n_layers, max_size=n_layers)
    return {
        "use_local_attn": True,
        "attn_types": draw(kinds),
        "window_size": draw(st.integers(1, 9)),
    }


def d_mlp(shape: dict[str, Any]) -> int:
    return shape["d_mlp"] or 4 * shape["d_model"]


def n_heads(shape: dict[str, Any]) -> int:
    return shape.get("n_heads", shape["d_model"] // shape["d_head"])


def widths(shape: dict[str, Any], n_positions: int) -> dict[str, int]:
    """The number of channels at each site."""
    d_model, all_heads = shape["d_model"], n_heads(shape) * shape["d_head"]
    found = {"attn_in": d_model + n_positions, "attn_out": d_model}
    found |= dict.fromkeys("qkv", all_heads)
    if not shape["attn_only"]:
        found |= {"mlp_in": d_model + n_positions, "mlp_neuron": d_mlp(shape), "mlp_out": d_model}
    return found


@st.composite
def densities(draw: Draw, smallest: int) -> Fraction:
    """A density that keeps at least one of `smallest` entries; often exactly one."""
    if draw(st.booleans()):
        return Fraction(draw(st.just(1) | st.integers(1, smallest)), smallest)
    decimal = draw(st.sampled_from(["1", "0.1", "0.29", "0.3", "0.7", "0.9", "1/3", "1/64"]))
    return max(Fraction(decimal), Fraction(1, smallest))


@st.composite
def sparsities(draw: Draw, shape: dict[str, Any]) -> dict[str, Any]:
    """Values for a SparsityConfig that this shape can meet; densities as exact fractions."""
    n_positions = 0
    if shape["positional_embedding_type"] == "none":
        n_positions = draw(st.sampled_from([0, 0, 1, 3]))
    channels = widths(shape, n_positions)
    d_model = shape["d_model"]
    matrices = [n_heads(shape) * shape["d_head"] * d_model]
    if not shape["attn_only"]:
        matrices.append(d_model * d_mlp(shape))
    d_vocab_out = shape["d_vocab"] if shape["d_vocab_out"] == -1 else shape["d_vocab_out"]
    weight = draw(densities(min(matrices)))
    values: dict[str, Any] = {
        "weight_density": weight,
        "embedding_density": draw(densities(d_model * min(shape["d_vocab"], d_vocab_out))),
        "bias_density": draw(densities(50)),  # a bias may keep nothing
        "min_alive": draw(st.integers(0, math.floor(weight * d_model))),
        "qkv_ranking": draw(st.sampled_from(["separate", "joint"])),
        "bigram_table": draw(st.booleans()),
        "position_channels": n_positions,
    }
    if draw(st.booleans()):
        values["activation_density"] = draw(densities(min(channels.values())))
    else:
        chosen = draw(st.sets(st.sampled_from(sorted(channels))))
        values["activation_density"] = {s: draw(densities(channels[s])) for s in sorted(chosen)}
    return values


@st.composite
def models(draw: Draw) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    shape = draw(shapes((torch.float32, torch.float64, torch.bfloat16)))
    attention = draw(st.sampled_from([None, "eager", "auto", "fused"]))
    return shape, draw(sparsities(shape)), attention


def as_floats(sparsity: dict[str, Any]) -> SparsityConfig:
    def number(value: Any) -> Any:
        if isinstance(value, dict):
            return {site: number(density) for site, density in value.items()}
        return float(value) if isinstance(value, Fraction) else value

    return SparsityConfig(**{name: number(value) for name, value in sparsity.items()})


def ranked_groups(model: HookedSparseTransformer, joint: bool) -> Iterator[tuple[str, list[str]]]:
    """The kind of density and the names of the parameters that are ranked together."""
    yield from (("embedding_density", [name]) for name in ("embed.W_E", "unembed.W_U"))
    for layer in range(model.cfg.n_layers):
        block = f"blocks.{layer}."
        qkv = [block + f"attn.W_{letter}" for letter in "QKV"]
        yield from (("weight_density", group) for group in ([qkv] if joint else [[w] for w in qkv]))
        yield "weight_density", [block + "attn.W_O"]
        yield from (("bias_density", [block + f"attn.b_{letter}"]) for letter in "QKVO")
        if not model.cfg.attn_only:
            yield from (("weight_density", [block + f"mlp.W_{way}"]) for way in ("in", "out"))
            yield from (("bias_density", [block + f"mlp.b_{way}"]) for way in ("in", "out"))


ALIVE_AXES = {"W_Q": 1, "W_K": 1, "W_V": 1, "W_O": 2, "W_in": 0, "W_out": 1}


def check_weights(model: HookedSparseTransformer, sparsity: dict[str, Any]) -> None:
    seen, parameters = [], dict(model.named_parameters())
    for kind, names in ranked_groups(model, sparsity["qkv_ranking"] == "joint"):
        masks = [model.weight_masks[name] for name in names]
        size = sum(mask.numel() for mask in masks)
        assert sum(int(mask.sum()) for mask in masks) == math.floor(sparsity[kind] * size), names
        for name, mask in zip(names, masks, strict=True):
            assert not parameters[name][~mask].any(), name
            axis = ALIVE_AXES.get(name.split(".")[-1])
            if kind == "weight_density" and axis is not None:
                assert int(mask.sum(axis).min()) >= sparsity["min_alive"], name
        seen += names
    assert set(seen) == set(model.weight_masks)


def check_activations(
    cache: Any, shape: dict[str, Any], sparsity: dict[str, Any], n_layers: int
) -> None:
    asked = sparsity["activation_density"]
    for site, width in widths(shape, sparsity["position_channels"]).items():
        density = asked.get(site, Fraction(1)) if isinstance(asked, dict) else asked
        for layer in range(n_layers):
            activation = cache[f"blocks.{layer}.{SITES[site]}"]
            if site in ("q", "k", "v"):
                activation = activation.flatten(-2)
            assert activation.shape[-1] == width, site
            n_nonzero = activation.count_nonzero(dim=-1)
            assert int(n_nonzero.max()) <= math.floor(density * width), (site, layer)


def run(model: HookedSparseTransformer, tokens: Tensor) -> tuple[Tensor, Any]:
    """Logits and the sites' activations; fused attention says where it can't, auto always can."""
    hook_points = {f"blocks.{i}.{h}" for i in range(model.cfg.n_layers) for h in SITES.values()}
    try:
        logits, cache = model.run_with_cache(tokens, names_filter=lambda n: n in hook_points)
    except ValueError as error:
        if 'attention="fused" never makes the scores' not in str(error):
            raise
        model.set_attention("auto")
        logits, cache = model.run_with_cache(tokens, names_filter=lambda n: n in hook_points)
    assert isinstance(logits, Tensor)
    return logits, cache


def learn(model: HookedSparseTransformer, logits: Tensor, *, adam: bool) -> None:
    """One optimiser step on a loss of these logits, and the projection."""
    targets = torch.arange(logits[..., 0].numel()) % logits.shape[-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.1) if adam else torch.optim.SGD(trained, lr=0.5)
    optimizer.step()
    model.project_()


def check_copies(model: HookedSparseTransformer, tokens: Tensor) -> None:
    with TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        copies = [copy.deepcopy(model), HookedSparseTransformer.load(Path(folder) / "model")]
    for other in copies:
        assert torch.equal(other(tokens), model(tokens))
        assert other.sparsity == model.sparsity
        for name, mask in model.weight_masks.items():
            assert torch.equal(other.weight_masks[name], mask), name


@random_test(400)
@given(drawn=models(), as_object=st.booleans(), adam=st.booleans(), copied=st.integers(0, 29))
def test_valid_configurations_build_run_learn_and_keep_exact_densities(
    drawn: tuple[dict[str, Any], dict[str, Any], Any], as_object: bool, adam: bool, copied: int
):
    shape, sparsity, attention = drawn
    cfg: Any = HookedTransformerConfig(**shape) if as_object else shape
    model = HookedSparseTransformer(cfg, sparsity=as_floats(sparsity), attention=attention)
    check_weights(model, sparsity)
    tokens = torch.arange(6).reshape(2, 3) * 5 % shape["d_vocab"]
    logits, cache = run(model, tokens)
    assert logits.shape == (2, 3, model.cfg.d_vocab_out)
    assert logits.isfinite().all()
    check_activations(cache, shape, sparsity, shape["n_layers"])
    learn(model, logits, adam=adam)
    check_weights(model, sparsity)
    if copied == 1:
        check_copies(model, tokens)


@random_test(200)
@given(shape=shapes((torch.float64,)), seed=st.integers(0, 99), evaluated=st.booleans())
def test_with_nothing_sparse_any_shape_is_transformerlens_bit_for_bit(
    shape: dict[str, Any], seed: int, evaluated: bool
):
    if shape["attn_only"]:
        shape["parallel_attn_mlp"] = False  # TransformerLens has no such block; ours ignores it
    if shape["positional_embedding_type"] == "none":
        shape["positional_embedding_type"] = "standard"
    shape["seed"] = seed
    theirs, ours = HookedTransformer(dict(shape)), HookedSparseTransformer(dict(shape))
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in state.items())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.7, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    for model in (theirs, ours):
        model.train(not evaluated)
    tokens = torch.randint(0, shape["d_vocab"], (2, 3), generator=generator)
    expected = theirs(tokens)
    assert torch.equal(ours(tokens), expected)
    ours.set_attention("auto")
    torch.testing.assert_close(ours(tokens), expected, rtol=1e-9, atol=1e-9)


# -- invalid configurations -------------------------------------------------------------------

ABSENT = object()
JUNK = [[8], b"8", 1j, object(), int, torch.tensor(8), torch.ones(2), np.ones(2), np.array(8),
        np.bool_(True), lambda: 8]  # fmt: skip
EMPTY: list[Any] = [[], {}, ()]
NO_NUMBERS = [*JUNK, "8", "abc", True, NAN, INF, -INF]
NO_COUNTS = [*NO_NUMBERS, *EMPTY, 2.5, 8.0, 0, -3, np.int64(0), Fraction(8, 3)]
NO_SWITCHES = [*JUNK, *EMPTY, "yes", 0, 1, None, NAN]
NO_WORDS = [*JUNK, 5, True, NAN]
NO_CHOICES = [*NO_WORDS, "nonsense", ""]
NO_POSITIVES = [*NO_NUMBERS, [], 0, -2.5, None]

COUNTS = ["n_layers", "d_model", "d_head", "n_ctx", "NTK_original_ctx_len"]
SIZES = ["n_heads", "d_vocab", "d_vocab_out"]
OPTIONAL_COUNTS = ["d_mlp", "window_size", "rotary_dim", "train_seq_length"]
POSITIVES = ["eps", "rotary_base", "rotary_scaling_factor", "yarn_factor", "yarn_beta_fast",
             "NTK_by_parts_factor", "NTK_by_parts_high_freq_factor", "attn_scale"]  # fmt: skip
CHOICES = ["act_fn", "normalization_type", "attention_dir", "init_mode",
           "positional_embedding_type"]  # fmt: skip
WORDS = ["model_name", "original_architecture", "tokenizer_name", "checkpoint_label_type"]
CAPS = ["attn_scores_soft_cap", "output_logits_soft_cap"]
UNSUPPORTED = ["gated_mlp", "load_in_4bit", "post_embedding_ln",
               "use_normalization_before_and_after"]  # fmt: skip
NO_CUDA = [] if torch.cuda.is_available() else ["cuda", torch.device("cuda")]


def each(names: list[str], values: list[Any]) -> dict[str, list[Any]]:
    return {name: values for name in names}


BAD_FIELDS: dict[str, list[Any]] = {
    **each(COUNTS, [*NO_COUNTS, None]),
    **each(SIZES, [*NO_COUNTS, None, -2]),
    **each(OPTIONAL_COUNTS, NO_COUNTS),
    **each(POSITIVES, NO_POSITIVES),
    **each(CHOICES, NO_CHOICES),
    **each(WORDS, NO_WORDS),
    **each(CAPS, [*NO_NUMBERS, -2.0]),
    **each(SWITCHES, NO_SWITCHES),
    **each(["use_local_attn", "use_yarn_rope", "init_weights"], NO_SWITCHES),
    **each(UNSUPPORTED, [True, 1, "yes", []]),
    **each(["n_key_value_heads", "num_experts", "experts_per_token"], [0, 1, 2, "2"]),
    "n_devices": [*NO_COUNTS, None, 2, 8],
    "clip_qkv": [*NO_NUMBERS, 0, -1],
    "initializer_range": [*NO_NUMBERS, -0.5, None, 1e300],
    "seed": [*NO_NUMBERS, -1, 2.5, 2**32, 10**40],
    "dtype": [*NO_CHOICES, "float32", torch.int64, torch.complex64, torch.bool, np.float32, None],
    "device": [*NO_CHOICES, "cuda:99", "meta", 0, torch.device("meta"), *NO_CUDA],
    "attn_types": [*NO_CHOICES, {}, "global", ["nonsense"], [None]],
}
ROTARY = {"positional_embedding_type": "rotary", "d_head": 4}
LOCAL = {"use_local_attn": True, "window_size": 2, "attn_types": ["local"] * 4}  # too many
BAD_TOGETHER: list[dict[Any, Any]] = [
    *({name: ABSENT} for name in ("n_layers", "d_model", "d_head", "n_ctx", "d_vocab")),
    *({name: 2} for name in ("n_layer", "weight_density", "", 7, None, (1, 2))),
    *({"original_architecture": f"{name}ForCausalLM"} for name in ("Olmoe", "Olmo2", "Olmo3")),
    {"positional_embedding_type": "relative_positional_bias"},
    {"positional_embedding_type": None},
    {"d_vocab": -1},
    {"act_fn": None, "attn_only": False},
    {"n_heads": -1, "d_model": 7, "d_head": 3},
    {"n_heads": -1, "d_model": 2, "d_head": 3},
    ROTARY | {"d_head": 3, "rotary_dim": None},
    ROTARY | {"rotary_dim": 3},
    ROTARY | {"rotary_dim": 6},
    ROTARY | {"rotary_dim": 2, "use_dynamic_ntk_rope": True},
    ROTARY | {"rotary_dim": 2, "use_NTK_by_parts_rope": True, "NTK_by_parts_low_freq_factor": 4.0},
    LOCAL,
    LOCAL | {"attn_types": []},
    LOCAL | {"attn_types": None},
    LOCAL | {"window_size": None},
    {"use_logn_attn": True, "train_seq_length": 1},
    {"dtype": torch.float16, "initializer_range": 1e4},
]
BAD_SPARSITIES: dict[str, list[Any]] = {
    **each(["weight_density", "embedding_density"], [*NO_POSITIVES, 1.001, 2, 1e-9]),
    "bias_density": [*NO_POSITIVES, 1.001, 2],
    "activation_density": [*NO_POSITIVES, 1.5, 1e-9, {"resid": 0.5},
                           {5: 0.5}, {"q": 0}, {"q": None}, {"k": "0.5"}, {"attn_in": 1e-9},
                           {"v": NAN}, {"v": np.ones(1)}],
    "min_alive": [*NO_NUMBERS, -1, 1.5, None, 10**6],
    "position_channels": [*NO_NUMBERS, -1, 1.5, None],
    "qkv_ranking": [*NO_CHOICES, None],
    "bigram_table": NO_SWITCHES,
}  # fmt: skip
BAD_ARGUMENTS: dict[str, list[Any]] = {
    "cfg": [None, "gpt2", 5, [], [("n_layers", 1)], {}, object(), HookedTransformerConfig],
    "sparsity": [
        {},
        {"weight_density": 0.5},
        "dense",
        0.5,
        SparsityConfig,
        TrainingConfig(),
        ABSENT,
    ],
    "attention": [*NO_CHOICES, "flash"],
    "tokenizer": [*NO_WORDS, "gpt2"],
    "move_to_device": NO_SWITCHES,
    "default_padding_side": [*NO_CHOICES, "up"],
}


@st.composite
def defects(draw: Draw) -> tuple[str, dict[Any, Any]]:
    """A place, and values there that make any configuration invalid."""
    place = draw(st.sampled_from(["field", "field", "together", "sparsity", "argument"]))
    if place == "together":
        return "cfg", draw(st.sampled_from(BAD_TOGETHER))
    table = {"field": BAD_FIELDS, "sparsity": BAD_SPARSITIES, "argument": BAD_ARGUMENTS}[place]
    name = draw(st.sampled_from(sorted(table)))
    return "cfg" if place == "field" else place, {name: draw(st.sampled_from(table[name]))}


def spoil(cfg: Any, values: dict[Any, Any], *, as_object: bool) -> Any:
    """A configuration with other values: a dict, or an object changed after it was made."""
    known = {field.name for field in fields(HookedTransformerConfig)}
    if as_object and all(n in known and v is not ABSENT for n, v in values.items()):
        made = HookedTransformerConfig(**cfg)
        made.__dict__.update(values)
        return made
    return {name: value for name, value in (cfg | values).items() if value is not ABSENT}


def assert_refused(names: set[Any], make: Any, *args: Any, **kwargs: Any) -> None:
    """A `ValueError` of our own, in one line, that names one of the defects."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is looked at below)
        make(*args, **kwargs)
    last = traceback.extract_tb(caught.tb)[-1]
    assert Path(last.filename).is_relative_to(Path(tl_sparse.__file__).parent), last
    said = str(caught.value).replace("_", " ")
    assert any(str(name).replace("_", " ") in said for name in names), (names, said)
    assert "\n" not in said


@random_test(400)
@given(base=models(), found=st.lists(defects(), min_size=1, max_size=3), as_object=st.booleans())
def test_invalid_configurations_are_refused_with_a_reason(
    base: tuple[dict[str, Any], dict[str, Any], Any],
    found: list[tuple[str, dict[Any, Any]]],
    as_object: bool,
):
    shape, sparsity, attention = base
    changed: dict[str, dict[Any, Any]] = {"cfg": {}, "sparsity": {}, "argument": {}}
    for place, values in found:
        changed[place] |= values
    names = {name for values in changed.values() for name in values}

    def make() -> Any:
        given: dict[str, Any] = {"cfg": spoil(shape, changed["cfg"], as_object=as_object)}
        given["sparsity"] = as_floats(sparsity | changed["sparsity"])
        return HookedSparseTransformer(**given | {"attention": attention} | changed["argument"])

    assert_refused(names, make)


BY_DEFAULT: dict[type, list[Any]] = {
    bool: NO_SWITCHES,
    int: [*NO_NUMBERS, 2.5, -3, None],
    float: [*NO_NUMBERS, -2.0, None],
    str: [*JUNK, *EMPTY, "nonsense", "", True, NAN, -5, None],
    tuple: [*JUNK, {}, "abc", 5, None, NAN, ("mlflow",), [0.9, 1.0], [0.9, "0.95"], [0.9, NAN]],
    type(None): [*NO_NUMBERS, 0, -1, 2.5],
}
"""What a field with such a default can't be."""


@pytest.mark.parametrize("config", [SparsityConfig, TrainingConfig, PruningConfig])
def test_every_field_of_a_config_answers_any_junk_with_its_rule(config: Any):
    for field in fields(config):
        default = getattr(config(), field.name)
        for value in BY_DEFAULT[type(default)]:
            for make in (lambda v: config(**v), config.from_dict):
                assert_refused({field.name}, make, {field.name: value})
    for junk in (None, [], "abc", 5, {5: 1}, {"colour": 1}, {None: 1}):
        assert_refused({config.__name__}, config.from_dict, junk)


@pytest.mark.parametrize("config", [SparsityConfig, TrainingConfig, PruningConfig])
def test_numbers_of_any_library_become_pythons_own(config: Any):
    rest = {"TrainingConfig": {"anneal": "none"}}.get(config.__name__, {})
    for field in fields(config):
        kind = type(getattr(config(), field.name))
        foreign = {int: (np.int64, np.uint8), float: (np.float64, np.float32, Fraction)}
        for other in foreign.get(kind, ()):
            value = getattr(config(**{field.name: other(1)}, **rest), field.name)
            assert value == 1
            assert type(value) is kind


def test_numpys_numbers_make_a_model_that_can_be_saved(tmp_path: Path):
    shape = {"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 6, "d_vocab": 5, "device": "cpu"}
    numpys = {name: np.int64(v) if isinstance(v, int) else v for name, v in shape.items()}
    model = HookedSparseTransformer(numpys | {"eps": np.float32(1e-5)})
    model.save(tmp_path / "model")
    assert type(HookedSparseTransformer.load(tmp_path / "model").cfg.d_model) is int


def test_a_tokenizer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    def absent(*args: Any, **kwargs: Any) -> Any:
        raise OSError("not a valid model identifier")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", absent)
    shape = {"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 6, "device": "cpu"}
    with pytest.raises(
        ValueError, match=r"No tokenizer could be read by cfg\.tokenizer_name='lost'"
    ):
        HookedSparseTransformer(shape | {"tokenizer_name": "lost"})


def test_an_attention_only_model_known_by_name_may_say_anything_about_its_mlp():
    shape = {"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 6, "d_vocab": 5, "device": "cpu"}
    known = {"attn_only": True, "act_fn": "attn_only", "d_mlp": -1, "original_architecture": "neel"}
    assert HookedSparseTransformer(shape | known)(torch.zeros(1, 2).long()).shape == (1, 2, 5)


def test_first_n_layers_of_a_model_known_by_name_keeps_the_list_of_all_its_layers():
    shape = {"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 6, "d_vocab": 5, "device": "cpu"}
    known = {"original_architecture": "GPTNeoForCausalLM", "use_local_attn": True, "window_size": 2}
    model = HookedSparseTransformer(shape | known | {"attn_types": ["local", "global"]})
    assert model.blocks[0].attn.attn_type == "local"

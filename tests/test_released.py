"""Released models against recordings of the reference and against a plain-torch evaluation."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from safetensors.torch import load_file
from torch import Tensor

from tl_sparse.config import SparsityConfig
from tl_sparse.layers import AbsTopK
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.released.options import SITES, site_densities
from tl_sparse.released.write import _afrac
from tl_sparse.tokenizer import read_bpe, train_tokenizer, write_bpe

GOLDEN = Path(__file__).parent / "golden" / "openai_checkpoints"
RECORDED = ("dense_like", "sweep_like", "yolo2_like")

HOOKS = {
    "resid_in": "hook_resid_pre",
    "attn.act_in": "hook_attn_read",
    "attn.q": "attn.hook_q",
    "attn.k": "attn.hook_k",
    "attn.v": "attn.hook_v",
    "attn.y": "attn.hook_z",
    "attn.resid_delta": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp.act_in": "hook_mlp_read",
    "mlp.post_act": "mlp.hook_post",
    "mlp.resid_delta": "hook_mlp_out",
}

SMALL: dict[str, Any] = {
    "vocab_size": 23, "block_size": 10, "n_layer": 2, "n_head": 3, "d_model": 12, "rms_norm": True,
    "tied_unembed": False, "afrac": 0.3,
    "afrac_loctypes": "attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out",
    "enable_bigram_table": True, "learnable_bigram_table": True, "sink": True,
    "tokenizer_name": "tinypython_2k",
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "all of it": {},
    "layer norm": {"rms_norm": False},
    "layer norm without bias": {"rms_norm": False, "ln_bias": False},
    "no biases": {"bias": False},
    "no sinks": {"sink": False, "flash": False},
    "sinks, the slow attention asked for last": {"flash": False},
    "no AbsTopK": {"afrac": None},
    "four sites, by default": {"afrac_loctypes": None},
    "an odd fraction": {"afrac": 0.29},
    "relu": {"activation_type": "relu"},
    "tied": {"tied_unembed": True},
    "no bigram table": {"enable_bigram_table": False},
    "a frozen bigram table": {"learnable_bigram_table": False},
    "a bigram table frozen by default": {"learnable_bigram_table": None},
    "positions as channels": {"d_pos_emb": 5},
    "positions as channels, layer norm": {"d_pos_emb": 5, "rms_norm": False},
    "positions as channels, layer norm without bias": {
        "d_pos_emb": 5,
        "rms_norm": False,
        "ln_bias": False,
    },
    "positions as channels, sinusoidal at first": {
        "d_pos_emb": 8,
        "sinusoidal_cat_pos_emb": True,
        "dropout_cat_pos_emb": True,
    },
    "positions as channels, AbsTopK at two sites": {
        "d_pos_emb": 5,
        "afrac_loctypes": "attn_in,mlp_neuron",
    },
    "positions as channels, no AbsTopK on them": {
        "d_pos_emb": 1,
        "afrac_loctypes": "attn_q,mlp_out",
    },
    "positions as channels, no biases": {"d_pos_emb": 32, "bias": False, "tied_unembed": True},
    "positions as channels, not asked for": {"d_pos_emb": None},
    "wide heads": {"d_head": 7},
    "narrow MLP": {"d_mlp": 9},
    "narrow MLP by its old name": {"n_mlp": 9},
    "keys without effect": {
        "dropout": 0.1,
        "bigram_table_rank": None,
        "use_tied_aux_matrix": False,
    },
    "one layer": {"n_layer": 1},
}


def config(**changes: Any) -> dict[str, Any]:
    """Give the small model's options; `None` takes the two keys out that are never null."""
    values, never = SMALL | changes, ("afrac_loctypes", "learnable_bigram_table")
    return {k: v for k, v in values.items() if not (k in never and v is None)}


def random_state(c: dict[str, Any], *, share: float = 0.5) -> dict[str, Tensor]:
    """Make the tensors that a model with these options stores, as the reference names them."""
    generator = torch.Generator().manual_seed(0)
    d, vocab, n_head = c["d_model"], c["vocab_size"], c["n_head"]
    inner = n_head * c.get("d_head", d // n_head)
    d_mlp = c.get("d_mlp", c.get("n_mlp", 4 * d))

    def draw(*shape: int, scale: float = 0.5) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def sparse(*shape: int) -> Tensor:
        return draw(*shape) * (torch.rand(*shape, generator=generator) < share)

    state = {"transformer.wte.weight": draw(vocab, d), "final_logits_bias": draw(vocab)}
    d_pos = c.get("d_pos_emb")
    d_read = d + (d_pos or 0)
    state["transformer.wpe.weight"] = draw(c["block_size"], d_pos or d)
    tied = c.get("tied_unembed", True)
    state["lm_head.weight"] = state["transformer.wte.weight"] if tied else draw(vocab, d)
    if c.get("enable_bigram_table"):
        state["bigram_table"] = draw(vocab, vocab)
    norms = {"transformer.ln_f": d}
    for layer in range(c["n_layer"]):
        h = f"transformer.h.{layer}"
        norms |= {f"{h}.ln_1": d, f"{h}.ln_2": d}
        if d_pos:
            norms |= {f"{h}.ln_p1": d_pos, f"{h}.ln_p2": d_pos}
        for name, n_out, n_in in (("attn.c_attn", 3 * inner, d_read), ("attn.c_proj", d, inner),
                                  ("mlp.c_fc", d_mlp, d_read),
                                  ("mlp.c_proj", d, d_mlp)):  # fmt: skip
            state[f"{h}.{name}.weight"] = sparse(n_out, n_in)
            if c.get("bias", True):
                state[f"{h}.{name}.bias"] = draw(n_out)
        if c.get("sink"):
            state[f"{h}.attn.attn_imp.sink_logit"] = draw(n_head)
    for name, width in norms.items():
        state[f"{name}.weight"] = 1 + draw(width)
        if c.get("ln_bias", True) and not c.get("rms_norm", False):
            state[f"{name}.bias"] = draw(width)
    return state


def write(folder: Path, c: dict[str, Any], state: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "beeg_config.json").write_text(json.dumps(c))
    torch.save(state, folder / "final_model.pt")
    return folder


def plain_logits(
    c: dict[str, Any],
    state: dict[str, Tensor],
    tokens: Tensor,
    seen: dict[str, Tensor] | None = None,
) -> Tensor:
    """Evaluate a released model in float64, with nothing but torch.

    `seen` takes what attention and MLP read, under the recordings' names.
    """
    seen = {} if seen is None else seen
    w = {name: tensor.double() for name, tensor in state.items()}
    n_head, n_pos = c["n_head"], tokens.shape[1]
    d_head = c.get("d_head", c["d_model"] // n_head)
    sites = c.get("afrac_loctypes", "attn_in,attn_out,mlp_in,mlp_out").split(",")

    def topk(x: Tensor, site: str) -> Tensor:
        if c.get("afrac") is None or site not in sites:
            return x
        k = int(c["afrac"] * x.shape[-1])
        smallest = x.abs().sort(dim=-1, descending=True).values[..., k - 1 : k]
        return torch.where(x.abs() >= smallest, x, torch.zeros_like(x))

    def norm(x: Tensor, name: str) -> Tensor:
        if c.get("rms_norm", False):
            eps = torch.finfo(torch.float32).eps
            return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"]
        bias = w.get(f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], bias, 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def beside(x: Tensor, name: str) -> Tensor:
        p = norm(w["transformer.wpe.weight"][:n_pos], name).expand(len(x), -1, -1)
        return torch.cat([x, p], dim=-1)

    x, concatenates = w["transformer.wte.weight"][tokens], c.get("d_pos_emb") is not None
    x = x if concatenates else x + w["transformer.wpe.weight"][:n_pos]
    mask = torch.ones(n_pos, n_pos, dtype=torch.bool).tril()
    for layer in range(c["n_layer"]):
        h = f"transformer.h.{layer}"
        read = norm(x, f"{h}.ln_1")
        read = topk(beside(read, f"{h}.ln_p1") if concatenates else read, "attn_in")
        seen[f"{layer}.attn.act_in"] = read
        q, k, v = linear(read, f"{h}.attn.c_attn").chunk(3, dim=-1)
        q, k, v = topk(q, "attn_q"), topk(k, "attn_k"), topk(v, "attn_v")
        heads = []
        for i in range(n_head):
            part = slice(i * d_head, (i + 1) * d_head)
            scores = (q[..., part] @ k[..., part].mT / math.sqrt(d_head)).masked_fill(
                ~mask, -torch.inf
            )
            weights = scores.exp()
            total = weights.sum(-1, keepdim=True)
            if c.get("sink"):
                total = total + w[f"{h}.attn.attn_imp.sink_logit"].expand(n_head)[i].exp()
            heads.append(weights / total @ v[..., part])
        x = x + topk(linear(torch.cat(heads, dim=-1), f"{h}.attn.c_proj"), "attn_out")
        read = norm(x, f"{h}.ln_2")
        read = topk(beside(read, f"{h}.ln_p2") if concatenates else read, "mlp_in")
        seen[f"{layer}.mlp.act_in"] = read
        hidden = linear(read, f"{h}.mlp.c_fc")
        relu = c.get("activation_type", "gelu") == "relu"
        hidden = hidden.relu() if relu else 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + topk(linear(topk(hidden, "mlp_neuron"), f"{h}.mlp.c_proj"), "mlp_out")
    logits = norm(x, "transformer.ln_f") @ w["lm_head.weight"].T + w["final_logits_bias"]
    return logits + w["bigram_table"][tokens] if c.get("enable_bigram_table") else logits


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 23, (3, 9), generator=torch.Generator().manual_seed(1))


# -- the recordings ---------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "fused"])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_models_are_reproduced(name, attention):
    recorded = load_file(GOLDEN / name / "expected.safetensors")
    model = HookedSparseTransformer.load_openai(GOLDEN / name)
    model.set_attention(attention)
    wanted = [n for n in model.hook_dict if not n.endswith(("hook_attn_scores", "hook_pattern"))]
    _, cache = model.run_with_cache(recorded["tokens"], names_filter=wanted)
    assert (recorded["logits"] - model(recorded["tokens"])).abs().max() < 1e-4
    compared = 0
    for key, expected in recorded.items():
        if not key.startswith("act/"):
            continue
        layer, _, hook = key[4:].partition(".")
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        ours = last if key == "act/final_resid" else f"blocks.{layer}.{HOOKS[hook]}"
        error = (cache[ours].reshape(expected.shape) - expected).abs().max()
        assert error < 1e-5 * max(1.0, float(expected.abs().max())), key
        compared += 1
    assert compared == len(HOOKS) * model.cfg.n_layers + 1


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_models_equal_plain_torch_in_float64(name):
    c = json.loads((GOLDEN / name / "beeg_config.json").read_text())
    state = torch.load(GOLDEN / name / "final_model.pt", weights_only=True)
    tokens = load_file(GOLDEN / name / "expected.safetensors")["tokens"]
    model = HookedSparseTransformer.load_openai(GOLDEN / name, dtype=torch.float64)
    assert (plain_logits(c, state, tokens) - model(tokens)).abs().max() < 1e-9


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_models_go_back_and_forth_without_a_difference(name, tmp_path):
    model = HookedSparseTransformer.load_openai(GOLDEN / name)
    model.export_openai(tmp_path / "back")
    theirs = torch.load(GOLDEN / name / "final_model.pt", weights_only=True)
    ours = torch.load(tmp_path / "back/final_model.pt", weights_only=True)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    again = HookedSparseTransformer.load_openai(tmp_path / "back")
    tokens = load_file(GOLDEN / name / "expected.safetensors")["tokens"]
    assert torch.equal(again(tokens), model(tokens))
    assert again.sparsity == model.sparsity


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_equals_plain_torch_in_float64(variant, tokens, tmp_path):
    c = config(**VARIANTS[variant])
    state = random_state(c)
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", c, state), dtype=torch.float64
    )
    expected = plain_logits(c, state, tokens)
    assert (model(tokens) - expected).abs().max() < 1e-9
    model.export_openai(tmp_path / "back")
    again = HookedSparseTransformer.load_openai(tmp_path / "back", dtype=torch.float64)
    assert torch.equal(again(tokens), model(tokens))


def test_what_may_be_absent_in_the_state(tokens, tmp_path):
    c = config(tied_unembed=True)
    state = random_state(c)
    state["final_logits_bias"].zero_()
    expected = plain_logits(c, state, tokens)
    del state["final_logits_bias"], state["lm_head.weight"]
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 10, 10).tril()  # the slow path's buffer
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", c, state), dtype=torch.float64
    )
    assert (model(tokens) - expected).abs().max() < 1e-9


def test_one_sink_for_all_heads(tokens, tmp_path):
    c = config()
    state = random_state(c)
    state |= {f"transformer.h.{i}.attn.attn_imp.sink_logit": torch.tensor([0.7]) for i in range(2)}
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", c, state), dtype=torch.float64
    )
    assert (plain_logits(c, state, tokens) - model(tokens)).abs().max() < 1e-9


def test_absent_keys_mean_what_the_reference_means(tmp_path):
    c = {"vocab_size": 23, "n_layer": 1, "n_head": 3, "d_model": 12}
    state = random_state(c | {"block_size": 1024})
    model = HookedSparseTransformer.load_openai(write(tmp_path / "m", c, state))
    cfg = model.cfg
    assert (cfg.n_ctx, cfg.d_mlp, cfg.d_head, cfg.act_fn) == (1024, 48, 4, "gelu")
    assert (cfg.normalization_type, cfg.eps) == ("LN", 1e-5)
    assert not cfg.use_attention_sinks
    assert not model.sparsity.bigram_table
    assert model.sparsity.activation_density == 1.0


def test_masks_are_the_zeros_and_survive_projection(tmp_path):
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", config(), random_state(config()))
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, mask in model.weight_masks.items():
        assert torch.equal(mask, before[name] != 0)
    assert 0.4 < model.sparsity.weight_density < 0.6
    model.project_()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_positions_that_are_all_zero_are_off(tmp_path):
    state = random_state(config())
    state["transformer.wpe.weight"].zero_()
    model = HookedSparseTransformer.load_openai(write(tmp_path / "m", config(), state))
    assert model.cfg.positional_embedding_type == "none"
    assert not model.pos_embed.W_pos.requires_grad


def test_a_loaded_model_is_saved_and_loaded_as_any_other(tokens, tmp_path):
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", config(), random_state(config()))
    )
    model.save(tmp_path / "ours")
    assert torch.equal(HookedSparseTransformer.load(tmp_path / "ours")(tokens), model(tokens))


def test_positions_as_channels_are_read_after_their_own_norm_and_abs_topk(tokens, tmp_path):
    c, seen = config(d_pos_emb=5), {}
    state = random_state(c)
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", c, state), dtype=torch.float64
    )
    plain_logits(c, state, tokens, seen)
    _, cache = model.run_with_cache(tokens)
    assert len(seen) == 4
    for key, expected in seen.items():
        layer, _, name = key.partition(".")
        ours = cache[f"blocks.{layer}.{HOOKS[name]}"]
        assert ours.shape == (3, 9, 12 + 5)
        assert (ours - expected).abs().max() < 1e-12, key
        assert ((ours != 0).sum(-1) == 5).all()  # int(0.3 x 17); of the 12 alone it would be 3
    assert torch.equal(cache["hook_embed"], cache["blocks.0.hook_resid_pre"])
    assert model.cfg.positional_embedding_type == "none"
    assert not model.W_pos.any()


def test_positions_as_channels_go_back_to_the_last_bit(tmp_path):
    c = config(d_pos_emb=5)
    state = random_state(c)
    model = HookedSparseTransformer.load_openai(write(tmp_path / "m", c, state))
    model.export_openai(tmp_path / "back")
    back = torch.load(tmp_path / "back/final_model.pt", weights_only=True)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert json.loads((tmp_path / "back/beeg_config.json").read_text())["d_pos_emb"] == 5


def test_positions_as_channels_that_are_all_zero_stay_channels(tokens, tmp_path):
    c = config(d_pos_emb=5, rms_norm=False)  # a layer norm makes its bias of zeros
    state = random_state(c)
    state["transformer.wpe.weight"].zero_()
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", c, state), dtype=torch.float64
    )
    assert (plain_logits(c, state, tokens) - model(tokens)).abs().max() < 1e-9


def test_the_slow_attention_of_a_model_without_sink_logits_has_no_sinks(tokens, tmp_path):
    c = config(sink=True, flash=False)
    state = random_state(config(sink=False))
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", c, state), dtype=torch.float64
    )
    assert not model.cfg.use_attention_sinks
    expected = plain_logits(c | {"sink": False}, state, tokens)
    assert (expected - model(tokens)).abs().max() < 1e-9
    with pytest.raises(ValueError, match=r"missing: transformer\.h\.0\.attn\.attn_imp\.sink_logit"):
        HookedSparseTransformer.load_openai(write(tmp_path / "fast", config(), state))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_tensors_in_half_precision_are_taken_at_their_values(half, tokens, tmp_path):
    c = config(tied_unembed=True, d_pos_emb=5)
    state = {name: tensor.to(half) for name, tensor in random_state(c).items()}
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", c, state), dtype=torch.float64
    )
    assert (plain_logits(c, state, tokens) - model(tokens)).abs().max() < 1e-9


def test_sites_without_a_fraction_are_not_looked_at(tokens, tmp_path):
    c = config(afrac=None, afrac_loctypes="resid_post_attn,resid_post_mlp,attn_in")
    state = random_state(c)
    model = HookedSparseTransformer.load_openai(
        write(tmp_path / "m", c, state), dtype=torch.float64
    )
    assert model.sparsity.activation_density == 1.0
    assert (plain_logits(c, state, tokens) - model(tokens)).abs().max() < 1e-9


def test_each_site_keeps_the_number_of_channels_that_the_reference_keeps():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        d_model, d_head, d_mlp, d_pos = torch.randint(1, 400, (4,), generator=generator).tolist()
        quotient = (
            torch.randint(1, d_model + 1, (), generator=generator).item() / d_model
        )  # often just under an integer
        for afrac in (torch.rand((), generator=generator).item(), quotient, 0.29, 1 / 3):
            widths: dict[str, int] = {"attn_in": d_model + d_pos, "mlp_in": d_model + d_pos}
            widths |= {"attn_q": 2 * d_head, "attn_k": 2 * d_head, "attn_v": 2 * d_head}
            widths |= {"attn_out": d_model, "mlp_neuron": d_mlp, "mlp_out": d_model}
            wanted = {name: int(afrac * width) for name, width in widths.items()}
            if 0 in wanted.values():
                continue
            options = {"d_model": d_model, "n_head": 2, "d_head": d_head, "d_mlp": d_mlp}
            options |= {"d_pos_emb": d_pos, "afrac": afrac, "afrac_loctypes": ",".join(widths)}
            densities = site_densities(options)
            for name, width in widths.items():
                assert AbsTopK(densities[SITES[name]], width).n_kept == wanted[name]
            back = _afrac(SparsityConfig(activation_density=densities), options)
            sparse = [name for name, width in widths.items() if wanted[name] < width]
            kept = {name: int((back["afrac"] or 1) * widths[name]) for name in sparse}
            assert kept == {name: wanted[name] for name in sparse}


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frobnicate": 1}, "not known: frobnicate"),
        ({"d_pos_emb": 4}, "missing: transformer.h.0.ln_p1.weight"),
        ({"d_pos_emb": 0}, "d_pos_emb is a positive whole number, got 0"),
        ({"d_pos_emb": True}, "d_pos_emb is a positive whole number, got True"),
        ({"use_tied_aux_matrix": True}, "use_tied_aux_matrix=True"),
        ({"residual_activation_type": "relu"}, "residual_activation_type='relu'"),
        ({"afrac_loctypes": "attn_in,resid_post_attn"}, "resid_post_attn"),
        ({"afrac_loctypes": "attn_in,resid_post_mlp"}, "resid_post_mlp"),
        ({"afrac_loctypes": "attn_inn"}, "'attn_inn'; sites are attn_in, attn_q"),
        ({"activation_type": "silu"}, "'gelu' or 'relu'"),
        ({"afrac": 0.01}, "none of the 12 channels at attn_in"),
        ({"afrac": 1.5}, r"afrac is null or in \(0, 1\], got 1.5"),
        ({"n_layer": "2"}, "n_layer is a positive whole number"),
        ({"sink": 1}, "sink is true or false"),
        ({"n_head": 5}, "multiple of n_head"),
        ({"rms_norm": False}, "missing: transformer.h.0.ln_1.bias"),
        ({"sink": False}, "extra: transformer.h.0.attn.attn_imp.sink_logit"),
        ({"n_layer": 3}, "missing: transformer.h.2"),
        ({"d_mlp": 9}, r"c_fc.weight is \(48, 12\).*says \(9, 12\)"),
        ({"tied_unembed": True}, "tied_unembed, but"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(changes, says, tmp_path):
    folder = write(tmp_path / "m", config(**changes), random_state(config()))
    with pytest.raises(ValueError, match=says):
        HookedSparseTransformer.load_openai(folder)


def test_a_damaged_folder_is_refused(tmp_path):
    def load() -> None:
        HookedSparseTransformer.load_openai(tmp_path / "m")

    with pytest.raises(ValueError, match="no folder"):
        load()
    state = random_state(config())
    write(tmp_path / "m", config(), state | {"lm_head.weight": torch.full((23, 12), torch.nan)})
    with pytest.raises(ValueError, match="NaN or infinite"):
        load()
    write(tmp_path / "m", config(), state)
    whole = (tmp_path / "m/final_model.pt").read_bytes()
    (tmp_path / "m/final_model.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged, was cut short"):
        load()
    (tmp_path / "m/final_model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged, was cut short"):
        load()
    for none in ([1, 2], {1: torch.zeros(2)}, {"a": torch.zeros(2, 2).to_sparse()}):
        torch.save(none, tmp_path / "m/final_model.pt")
        with pytest.raises(ValueError, match="not a state dict"):
            load()
    (tmp_path / "m/final_model.pt").unlink()
    with pytest.raises(ValueError, match=r"no final_model\.pt"):
        load()
    (tmp_path / "m/beeg_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"beeg_config\.json is missing or damaged"):
        load()


class Hostile:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_nothing_is_unpickled(tmp_path, capsys):
    folder = write(tmp_path / "m", config(), {})
    torch.save({"transformer.wte.weight": Hostile()}, folder / "final_model.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        HookedSparseTransformer.load_openai(folder)
    assert "never be printed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"eps": 1e-5}, r"cfg.eps=1e-05 exactly; only 1.1920929e-07"),
        ({"act_fn": "gelu_new"}, "act_fn='gelu_new'"),
        ({"attn_only": True}, "attn_only=True"),
        ({"attn_scale": 1.0}, "attn_scale"),
        ({"n_heads": 3}, "a divisor of d_model"),
    ],
)
def test_an_export_that_cannot_be_exact_is_refused(shape, says, tmp_path):
    model = make_model(**({"eps": torch.finfo(torch.float32).eps} | shape))
    with pytest.raises(ValueError, match=says):
        model.export_openai(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_keeps_the_counts_of_abs_topk(tmp_path):
    eps = torch.finfo(torch.float32).eps
    mixed = SparsityConfig(activation_density={"attn_in": 1 / 4, "mlp_out": 1 / 8})
    with pytest.raises(ValueError, match="one fraction for AbsTopK"):
        make_model(mixed, eps=eps).export_openai(tmp_path / "out")
    some = SparsityConfig(weight_density=1 / 4, activation_density={"q": 0.3, "mlp_neuron": 0.3})
    model = make_model(some, eps=eps)
    model.export_openai(tmp_path / "out")
    c = json.loads((tmp_path / "out/beeg_config.json").read_text())
    assert c["afrac_loctypes"] == "attn_q,mlp_neuron"
    again = HookedSparseTransformer.load_openai(tmp_path / "out")
    again.set_attention(model.attention)
    tokens = torch.randint(0, 50, (2, 12))
    torch.testing.assert_close(again(tokens), model(tokens), atol=1e-5, rtol=1e-5)


# -- the tokenizer ----------------------------------------------------------------------------


def test_the_tokenizer_beside_a_model_is_read_and_written(tmp_path):
    texts = ["def f(x):\n    return 'a' + \"b\"\n"] * 3
    tokenizer = train_tokenizer(texts, vocab_size=300)
    write_bpe(tokenizer, tmp_path)
    again = read_bpe(tmp_path)
    assert again is not None
    text = "def g(naïve):\n\treturn ('x', 12345)  # → <|endoftext|>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == text
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_by_hand_follows_the_order_of_its_merges(tmp_path):
    """Bytes, then `ab` before `bc`: "abc" is ab + c, though bc comes later in the text."""
    letters = {chr(c): i for i, c in enumerate(range(97, 123))}
    (tmp_path / "encoder.json").write_text(json.dumps(letters | {"ab": 26, "bc": 27}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\nb c\n")
    tokenizer = read_bpe(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("abcbc") == [26, 2, 27]
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 28


def test_half_a_tokenizer_is_refused(tmp_path):
    assert read_bpe(tmp_path) is None
    (tmp_path / "encoder.json").write_text('{"a": 0}')
    with pytest.raises(ValueError, match="No tokenizer could be read"):
        read_bpe(tmp_path)


def test_a_model_takes_the_tokenizer_beside_it(tmp_path):
    folder = write(tmp_path / "m", config(vocab_size=300), random_state(config(vocab_size=300)))
    write_bpe(train_tokenizer(["for i in range(10): print(i)\n"] * 9, vocab_size=300), folder)
    model = HookedSparseTransformer.load_openai(folder)
    assert model.tokenizer is not None
    assert model.to_tokens("print(").tolist() == [model.tokenizer.encode("print(")]
    model.export_openai(tmp_path / "back")
    assert (tmp_path / "back/vocab.bpe").read_bytes() == (folder / "vocab.bpe").read_bytes()

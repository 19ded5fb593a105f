"""SAELens on sparse models: its stores, runners, evaluations and splices against plain torch."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPE, make_model
from datasets import Dataset
from plain import plain_forward
from sae_lens import (
    SAE,
    AbsTopKTrainingSAEConfig,
    ActivationsStore,
    BatchTopKTrainingSAEConfig,
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    HookedSAETransformer,
    JumpReLUTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.saes.topk_sae import TopKTrainingSAE
from sae_lens.saes.transcoder import Transcoder, TranscoderConfig
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from tl_sparse import sae_baseline
from tl_sparse.config import SparsityConfig
from tl_sparse.data import Corpus
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.sae_baseline import SAEScores, evaluate_sae, token_dataset, with_saes
from tl_sparse.sites import model_hash

pytestmark = [
    # What SAELens says at nearly every use of a pretokenised dataset.
    pytest.mark.filterwarnings("ignore:The training dataset contains fewer samples:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:All samples in the training dataset:UserWarning"),
]

SPARSE = SparsityConfig(weight_density=1 / 4, activation_density=1 / 4, bigram_table=True)
ARMS = {"sparse": SPARSE, "dense": SparsityConfig(bigram_table=True)}
WIDTHS = {
    "hook_resid_pre": 32,
    "hook_attn_read": 32,
    "attn.hook_q": 32,
    "attn.hook_k": 32,
    "attn.hook_v": 32,
    "attn.hook_z": 32,
    "hook_attn_out": 32,
    "hook_resid_mid": 32,
    "hook_mlp_read": 32,
    "mlp.hook_post": 64,
    "hook_mlp_out": 32,
    "hook_resid_post": 32,
}
HOOKS = {f"blocks.1.{name}": width for name, width in WIDTHS.items()}
HOOKS |= {"ln_final.hook_normalized": 32}
HEADS = ("hook_q", "hook_k", "hook_v", "hook_z")
ORACLE = {
    "hook_attn_read": "attn_in",
    "hook_q": "q",
    "hook_k": "k",
    "hook_v": "v",
    "hook_attn_out": "attn_out",
    "hook_mlp_read": "mlp_in",
    "hook_post": "mlp_neuron",
    "hook_mlp_out": "mlp_out",
}
N_CTX = 12


def eager(sparsity: SparsityConfig, **shape: Any) -> HookedSparseTransformer:
    """A model whose every activation is the same to the bit, whatever else is hooked."""
    model = make_model(sparsity, **shape)
    model.set_attention("eager")
    return model


@pytest.fixture(scope="module", params=ARMS)
def model(request: pytest.FixtureRequest) -> HookedSparseTransformer:
    return eager(ARMS[request.param])


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rows = torch.randint(0, 50, (48, N_CTX), generator=torch.Generator().manual_seed(4))
    return Dataset.from_dict({"tokens": rows.numpy()})


def rows_of(dataset: Dataset) -> Tensor:
    return torch.as_tensor(dataset["tokens"][:])


def make_sae(hook_name: str, d_in: int, **metadata: Any) -> SAE[Any]:
    """A random SAE with biases, whose latents are about half of them on."""
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=3 * d_in))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(std=0.2, generator=generator)
    for name, value in {"hook_name": hook_name, **metadata}.items():
        sae.cfg.metadata[name] = value
    return sae


def store_at(model: Any, dataset: Dataset, hook_name: str, d_in: int, **options: Any) -> Any:
    given: dict[str, Any] = {
        "streaming": False,
        "context_size": N_CTX,
        "total_training_tokens": 100,
        "store_batch_size_prompts": 8,
        "train_batch_size_tokens": 32,
        "n_batches_in_buffer": 8,
        "prepend_bos": False,
    }
    return ActivationsStore.from_config_multi_hook(
        model,
        dataset=dataset,
        hook_names=[hook_name],
        hook_d_ins={hook_name: d_in},
        **(given | options),
    )


def by_hand(model: Any, tokens: Tensor, hook_name: str, change: Any) -> Tensor:
    """Logits with a function of the flattened activation put in its place."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        flat = activation.flatten(2)
        return change(flat).reshape(activation.shape)

    return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, hook)])


def loss_of(logits: Tensor, tokens: Tensor) -> float:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()


# Stores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook_name", HOOKS)
def test_the_store_gives_what_stands_at_the_site(model, dataset, hook_name):
    store = store_at(model, dataset, hook_name, HOOKS[hook_name])
    tokens = store.get_batch_tokens(5)
    assert torch.equal(tokens, rows_of(dataset)[:5])
    found = store.get_activations(tokens)
    _, cache = model.run_with_cache(tokens)
    assert torch.equal(found, cache[hook_name].flatten(2))
    end = hook_name.split(".")[-1]
    if end in ORACLE:
        seen: dict[str, Tensor] = {}

        def at(layer: int, site: str, x: Tensor) -> Tensor:
            seen[f"{layer} {site}"] = x
            return x

        plain_forward(model.state_dict(), tokens, model.sparsity, SHAPE, at)
        torch.testing.assert_close(found, seen[f"1 {ORACLE[end]}"], rtol=0, atol=1e-5)


def test_the_store_with_fused_attention_gives_the_same(dataset):
    slow, fast = eager(SPARSE), make_model(SPARSE)
    fast.set_attention("fused")
    for hook_name in ("blocks.1.attn.hook_z", "blocks.1.hook_attn_out"):
        stores = [store_at(m, dataset, hook_name, 32) for m in (slow, fast)]
        a, b = (store.get_activations(store.get_batch_tokens(5)) for store in stores)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_batches_of_a_store_are_rows_of_the_activations(model, dataset):
    hook_name = "blocks.0.mlp.hook_post"
    batch = next(store_at(model, dataset, hook_name, 64))
    _, cache = model.run_with_cache(rows_of(dataset), names_filter=hook_name)
    same = (batch[:, None] == cache[hook_name].flatten(0, 1)).all(-1)
    assert batch.shape == (32, 64)
    assert same.any(dim=1).all()
    assert not torch.equal(same, torch.eye(32, len(same[0])).bool())  # mixed, not in order


def test_a_store_of_many_hooks_gives_all_sites_in_one_pass(model, dataset):
    store = ActivationsStore.from_config_multi_hook(
        model, dataset=dataset, hook_names=list(HOOKS), hook_d_ins=HOOKS, streaming=False,
        context_size=N_CTX, total_training_tokens=1, prepend_bos=False,
    )  # fmt: skip
    tokens = rows_of(dataset)[:5]
    found = store.get_multi_hook_activations(tokens)
    _, cache = model.run_with_cache(tokens)
    for hook_name in HOOKS:
        assert torch.equal(found[hook_name], cache[hook_name].flatten(2))


def test_the_names_that_saelens_takes_for_heads_are_those_of_heads(model, tokens):
    """SAELens flattens the last two axes wherever a name *contains* one of these."""
    _, cache = model.run_with_cache(tokens)
    taken = {name for name in cache if any(head in name for head in HEADS)}
    assert taken == {name for name in cache if cache[name].shape[2:] == (4, 8)}


def test_the_store_of_one_head_gives_that_head(model, dataset):
    hook_name = "blocks.1.attn.hook_q"
    store = store_at(model, dataset, hook_name, 8, hook_head_indices={hook_name: 2})
    tokens = store.get_batch_tokens(5)
    _, cache = model.run_with_cache(tokens)
    assert torch.equal(store.get_activations(tokens), cache[hook_name][:, :, 2])


def test_the_store_under_autocast_sees_other_channels_chosen(dataset):
    """`autocast_lm=True` is bfloat16, whose rounding is small until AbsTopK ranks by it."""
    errors = {}
    for arm, sparsity in {"sparse": SPARSE, "dense": SparsityConfig()}.items():
        model, hook_name = eager(sparsity), "blocks.1.hook_mlp_read"
        store = store_at(model, dataset, hook_name, 32, autocast_lm=True)
        found = store.get_activations(rows_of(dataset))
        exact = model.run_with_cache(rows_of(dataset))[1][hook_name]
        errors[arm] = ((found - exact).norm() / exact.norm()).item()
    assert errors["dense"] < 0.02
    assert errors["sparse"] > 0.1


@pytest.mark.filterwarnings("ignore:Dataset is not tokenized:UserWarning")
def test_the_store_cuts_text_into_the_tokens_of_the_corpus(tokenized, corpus):
    texts = [f"x{i} = {i}\n" for i in range(40)]
    store = store_at(tokenized, Dataset.from_dict({"text": texts}), "blocks.0.hook_resid_pre", 32)
    found = store.get_batch_tokens(3).flatten().tolist()
    end = corpus.tokenizer.eos_token_id
    stream = [token for text in texts for token in [*corpus.tokenizer.encode(text), end]]
    assert found == stream[: len(found)]


# Training -----------------------------------------------------------------------------------------

ARCHITECTURES = {
    "topk": TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8),
    # Its threshold is a running mean that starts at 0: too slow, by default, for fifty steps.
    "batchtopk": BatchTopKTrainingSAEConfig(d_in=32, d_sae=64, k=8, topk_threshold_lr=0.2),
    "jumprelu": JumpReLUTrainingSAEConfig(
        d_in=32, d_sae=64, jumprelu_init_threshold=0.3, l0_coefficient=0.1
    ),
    "abstopk": AbsTopKTrainingSAEConfig(d_in=32, d_sae=64, k=8),
}


def runner_config(sae: Any, hook_name: str, out: Any) -> LanguageModelSAERunnerConfig[Any]:
    return LanguageModelSAERunnerConfig(
        sae=copy.deepcopy(sae), model_name="local", hook_name=hook_name, dataset_path="local",
        streaming=False, is_dataset_tokenized=True, context_size=16, training_tokens=6_400,
        store_batch_size_prompts=16, n_batches_in_buffer=64, train_batch_size_tokens=128, lr=1e-2,
        prepend_bos=False, device="cpu", logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None, output_path=str(out), verbose=False, model_from_pretrained_kwargs={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def text_model(corpus: Corpus) -> HookedSparseTransformer:
    return eager(SPARSE, d_vocab=corpus.d_vocab)


@pytest.fixture(scope="module")
def tokenized(corpus: Corpus) -> HookedSparseTransformer:
    """A model that has its tokenizer, for what SAELens does with text and special tokens."""
    shape = SHAPE | {"d_vocab": corpus.d_vocab, "default_prepend_bos": False}
    return HookedSparseTransformer(
        shape, tokenizer=corpus.tokenizer, sparsity=SPARSE, attention="eager"
    )


@pytest.mark.parametrize(
    ("architecture", "least", "most"),
    [("topk", 6, 8), ("batchtopk", 4, 16), ("jumprelu", 2, 32), ("abstopk", 8, 8)],
)
def test_the_runner_trains_an_sae_and_leaves_the_model_alone(
    text_model, corpus, tmp_path, architecture, least, most
):
    hook_name = "blocks.1.hook_attn_read"
    before = model_hash(text_model)
    windows = corpus.validation.windows(16, 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        runner = LanguageModelSAETrainingRunner(
            runner_config(ARCHITECTURES[architecture], hook_name, tmp_path),
            override_model=text_model,
            override_dataset=token_dataset(corpus.train, 16, n_windows=400),
        )
        runner.sae.cfg.metadata.hook_name = hook_name
        runner.sae.save_inference_model(tmp_path / "untrained")
        runner.run()
    scores = evaluate_sae(text_model, SAE.load_from_disk(tmp_path), windows)
    untrained = evaluate_sae(text_model, SAE.load_from_disk(tmp_path / "untrained"), windows)
    assert scores.explained_variance > untrained.explained_variance + 0.2
    assert least <= scores.l0 <= most
    assert model_hash(text_model) == before
    assert all(not h._forward_hooks for h in text_model.hook_dict.values())


def test_the_runners_seed_is_torchs_own_and_not_its_setting(corpus, text_model, tmp_path):
    hook_name = "blocks.0.hook_resid_post"

    def start(seed: int) -> Tensor:
        config = runner_config(ARCHITECTURES["topk"], hook_name, tmp_path)
        config.seed = seed
        data = token_dataset(corpus.train, 16, n_windows=8)
        return LanguageModelSAETrainingRunner(config, data, text_model).sae.W_dec.detach()

    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = start(0), start(0)
        torch.manual_seed(3)
        third = start(1)
    assert not torch.equal(first, second)
    assert torch.equal(first, third)


def test_one_pass_trains_saes_of_several_sites(model, dataset):
    hooks = {"read": "blocks.1.hook_attn_read", "neurons": "blocks.0.mlp.hook_post"}
    config = MultiSAETrainingRunnerConfig(
        saes={"read": TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8),
              "neurons": AbsTopKTrainingSAEConfig(d_in=64, d_sae=64, k=8)},
        hook_names=hooks, model_name="local", dataset_path="local", streaming=False,
        context_size=N_CTX, training_tokens=2_400, store_batch_size_prompts=8,
        n_batches_in_buffer=16, train_batch_size_tokens=96, lr=1e-2, prepend_bos=False,
        logger=LoggingConfig(log_to_wandb=False), checkpoint_path=None, output_path=None,
        model_from_pretrained_kwargs={},
    )  # fmt: skip
    saes = MultiSAETrainingRunner(config, dataset, model).run()
    _, cache = model.run_with_cache(rows_of(dataset))
    for name, sae in saes.items():
        x = cache[hooks[name]].flatten(0, 1)
        fresh = type(sae)(sae.cfg)
        assert (sae(x) - x).pow(2).sum() < 0.9 * (fresh(x) - x).pow(2).sum()


@pytest.mark.filterwarnings("ignore:HookedTransformer.from_pretrained is dep:DeprecationWarning")
def test_the_runner_that_caches_activations_takes_no_model_of_ours(dataset, tmp_path):
    """It loads by TransformerLens name and has no `override_model`."""
    make_model(SPARSE).save(tmp_path / "model")
    config = CacheActivationsRunnerConfig(
        dataset_path="local", model_name=str(tmp_path / "model"), model_batch_size=8,
        hook_name="blocks.0.hook_resid_post", d_in=32, training_tokens=96, context_size=N_CTX,
        new_cached_activations_path=str(tmp_path / "acts"), prepend_bos=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"not found\. Valid official model names"):
        CacheActivationsRunner(config, override_dataset=dataset)


def test_the_trainer_takes_activations_from_any_iterator(model, dataset):
    hook_name = "blocks.1.mlp.hook_post"
    _, cache = model.run_with_cache(rows_of(dataset), names_filter=hook_name)
    rows = cache[hook_name].detach().flatten(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=64, d_sae=128, k=8))
        before = (sae(rows) - rows).pow(2).mean().item()
        config = SAETrainerConfig(
            total_training_samples=6_400, train_batch_size_samples=64, lr=1e-2, lr_end=1e-3
        )
        config.logger.log_to_wandb = False
        batches = (rows[torch.randperm(len(rows))[:64]] for _ in range(200))
        SAETrainer(config, sae, batches).fit()
    after = (sae(rows) - rows).pow(2).mean().item()
    assert after < 0.5 * before


# Evaluation ---------------------------------------------------------------------------------------

EVERYTHING = EvalConfig(
    batch_size_prompts=8,
    n_eval_reconstruction_batches=6,
    n_eval_sparsity_variance_batches=6,
    compute_kl=True,
    compute_ce_loss=True,
    compute_l2_norms=True,
    compute_sparsity_metrics=True,
    compute_variance_metrics=True,
)


@pytest.mark.parametrize("hook_name", HOOKS)
def test_the_evaluation_is_what_one_computes_by_hand(model, dataset, hook_name):
    sae, tokens = make_sae(hook_name, HOOKS[hook_name]), rows_of(dataset)
    store = store_at(model, dataset, hook_name, HOOKS[hook_name])
    metrics, _ = run_evals(
        sae, store, model, ActivationScaler(), EVERYTHING, exclude_special_tokens=False
    )
    losses = metrics["model_performance_preservation"]
    whole = plain_forward(model.state_dict(), tokens, model.sparsity, SHAPE)
    spliced = by_hand(model, tokens, hook_name, lambda x: sae.decode(sae.encode(x)))
    zeroed = by_hand(model, tokens, hook_name, torch.zeros_like)
    assert losses["ce_loss_without_sae"] == pytest.approx(loss_of(whole, tokens), abs=1e-5)
    assert losses["ce_loss_with_sae"] == pytest.approx(loss_of(spliced, tokens), abs=1e-5)
    assert losses["ce_loss_with_ablation"] == pytest.approx(loss_of(zeroed, tokens), abs=1e-5)
    _, cache = model.run_with_cache(tokens, names_filter=hook_name)
    x = cache[hook_name].flatten(2).flatten(0, 1).double()
    latents = sae.encode(x.float()).double()
    error = (x - sae.decode(latents.float())).pow(2).sum()
    explained = 1 - error / (x - x.mean(0)).pow(2).sum()
    quality = metrics["reconstruction_quality"]
    assert metrics["sparsity"]["l0"] == pytest.approx((latents != 0).sum(-1).double().mean().item())
    assert quality["explained_variance"] == pytest.approx(explained.item(), abs=1e-5)

    scores = evaluate_sae(model, sae, tokens)
    assert scores.loss == pytest.approx(losses["ce_loss_without_sae"], abs=1e-5)
    assert scores.loss_spliced == pytest.approx(losses["ce_loss_with_sae"], abs=1e-5)
    assert scores.loss_zeroed == pytest.approx(losses["ce_loss_with_ablation"], abs=1e-5)
    assert scores.l0 == pytest.approx(metrics["sparsity"]["l0"])
    assert scores.explained_variance == pytest.approx(quality["explained_variance"], abs=1e-5)
    assert scores.n_dead == int((latents == 0).all(0).sum())


def test_by_default_the_evaluation_leaves_out_the_end_of_a_text(tokenized, corpus):
    """`exclude_special_tokens` defaults to True; the losses are then not the model's own mean."""
    hook_name, end = "blocks.0.hook_resid_post", corpus.tokenizer.eos_token_id
    tokens = corpus.validation.windows(N_CTX, 24)
    tokens[::2, 5] = end
    store = store_at(tokenized, Dataset.from_dict({"tokens": tokens.numpy()}), hook_name, 32)
    sae = make_sae(hook_name, 32)
    metrics, _ = run_evals(sae, store, tokenized, ActivationScaler(), EVERYTHING)
    found = metrics["model_performance_preservation"]["ce_loss_without_sae"]
    logits = tokenized(tokens)[:, :-1].transpose(1, 2)
    each = F.cross_entropy(logits, tokens[:, 1:], reduction="none")
    assert found == pytest.approx(each[tokens[:, :-1] != end].mean().item(), abs=1e-5)
    assert abs(found - each.mean().item()) > 1e-4
    assert evaluate_sae(tokenized, sae, tokens).loss == pytest.approx(each.mean().item(), abs=1e-5)


def test_zero_rows_make_the_cosine_nan_and_leave_the_explained_variance_right():
    """With AbsTopK one head's q is often all zero: `cossim` divides by its norm."""
    model = eager(SPARSE)
    tokens, hook_name = torch.arange(48).reshape(4, 12), "blocks.1.attn.hook_q"
    heads = model.run_with_cache(tokens, names_filter=hook_name)[1][hook_name]
    head = int((heads == 0).all(-1).sum((0, 1)).argmax())
    assert (heads[:, :, head] == 0).all(-1).any()
    sae = make_sae(hook_name, 8, hook_head_index=head)
    rows = Dataset.from_dict({"tokens": tokens.numpy()})
    store = store_at(model, rows, hook_name, 8, hook_head_indices={hook_name: head})
    config = EvalConfig(batch_size_prompts=4, compute_variance_metrics=True)
    metrics, _ = run_evals(sae, store, model, ActivationScaler(), config)
    quality = metrics["reconstruction_quality"]
    x = heads[:, :, head].flatten(0, 1)
    explained = 1 - (x - sae(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert quality["cossim"] != quality["cossim"]
    assert quality["explained_variance"] == pytest.approx(explained.item(), abs=1e-5)


def test_a_hook_point_that_nothing_reads_is_refused_where_saelens_divides_by_zero(dataset):
    model = eager(SPARSE)
    with torch.no_grad():
        model.blocks[1].mlp.W_out.zero_()
    hook_name = "blocks.1.mlp.hook_post"
    sae, store = make_sae(hook_name, 64), store_at(model, dataset, hook_name, 64)
    with pytest.raises(ZeroDivisionError):
        run_evals(sae, store, model, ActivationScaler(), EVERYTHING)
    with pytest.raises(ValueError, match=r"Zeroing blocks.1.mlp.hook_post does not change"):
        evaluate_sae(model, sae, rows_of(dataset))


def test_an_sae_that_does_not_say_where_it_belongs_is_refused(model, dataset):
    sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=64))
    with pytest.raises(ValueError, match=r"Set sae.cfg.metadata.hook_name"):
        evaluate_sae(model, sae, rows_of(dataset))
    with pytest.raises(ValueError, match=r"Set sae.cfg.metadata.hook_name"):
        with_saes(model).add_sae(sae)


@pytest.mark.parametrize(("zeroed", "recovered"), [(4.0, 0.75), (3.0005, None), (2.9, None)])
def test_loss_is_recovered_only_where_zeroing_costs_some(zeroed, recovered):
    scores = SAEScores(
        l0=8.0, explained_variance=0.9, loss=3.0, loss_spliced=3.25, loss_zeroed=zeroed, n_dead=0
    )
    assert scores.loss_recovered == recovered


def test_the_trainers_form_of_an_sae_is_not_evaluated(model, dataset):
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8))
    with pytest.raises(ValueError, match=r"trainer's form .* sae.save_inference_model\(folder\)"):
        evaluate_sae(model, sae, rows_of(dataset))


# Splicing -----------------------------------------------------------------------------------------


def test_a_spliced_model_is_the_same_model_with_hook_points_of_its_own(model, tokens):
    state = torch.get_rng_state()
    spliced = with_saes(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(spliced, HookedSAETransformer)
    assert isinstance(spliced, HookedSparseTransformer)
    assert torch.equal(spliced(tokens), model(tokens))
    theirs = dict(spliced.named_parameters())
    assert all(p is theirs[name] for name, p in model.named_parameters())
    assert spliced.weight_masks is model.weight_masks
    assert not set(spliced.hook_dict.values()) & set(model.hook_dict.values())
    assert set(spliced.hook_dict) - set(model.hook_dict) == {
        "blocks.0.mlp.hook_in",
        "blocks.1.mlp.hook_in",
    }
    _, cache = spliced.run_with_cache(tokens)
    assert torch.equal(cache["blocks.1.mlp.hook_in"], cache["blocks.1.hook_mlp_read"])


@pytest.mark.parametrize("hook_name", HOOKS)
def test_a_spliced_sae_is_its_output_put_there_by_hand(model, tokens, hook_name):
    spliced, sae = with_saes(model), make_sae(hook_name, HOOKS[hook_name])
    expected = by_hand(model, tokens, hook_name, lambda x: sae.decode(sae.encode(x)))
    found = spliced.run_with_saes(tokens, saes=[sae])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, model(tokens), atol=1e-2)
    loss = spliced.run_with_saes(tokens, saes=sae, return_type="loss")
    assert loss.item() == pytest.approx(loss_of(expected, tokens), abs=1e-5)
    _, cache = spliced.run_with_cache_with_saes(tokens, saes=[sae])
    _, plain = model.run_with_cache(tokens, names_filter=hook_name)
    latents = sae.encode(plain[hook_name].flatten(2))
    torch.testing.assert_close(cache[f"{hook_name}.hook_sae_acts_post"], latents)


@pytest.mark.parametrize("hook_name", HOOKS)
def test_the_error_term_restores_the_logits(model, tokens, hook_name):
    spliced, sae = with_saes(model), make_sae(hook_name, HOOKS[hook_name])
    found = spliced.run_with_saes(tokens, saes=[sae], use_error_term=True)
    torch.testing.assert_close(found, model(tokens), rtol=0, atol=1e-5)


def test_saes_at_all_sites_at_once_are_spliced_and_removed(tokens):
    model = eager(SPARSE)
    masks = {name: mask.clone() for name, mask in model.weight_masks.items()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    spliced, logits = with_saes(model), model(tokens)
    saes = [make_sae(name, width) for name, width in HOOKS.items()]
    for sae in saes:
        spliced.add_sae(sae)
    assert set(spliced.acts_to_saes) == set(HOOKS)
    assert not torch.allclose(spliced(tokens), logits, atol=1e-2)
    assert torch.equal(model(tokens), logits)
    spliced.reset_saes()
    spliced.reset_hooks(including_permanent=True)
    assert torch.equal(spliced(tokens), logits)
    with pytest.raises(RuntimeError, match="on purpose"), spliced.saes(saes):
        raise RuntimeError("on purpose")
    found, cache = spliced.run_with_cache(tokens)
    assert torch.equal(found, logits)
    for name, width in HOOKS.items():
        if name.split(".")[-1] in ORACLE:
            assert (cache[name].flatten(2) != 0).sum(-1).max() <= width // 4
    assert all(torch.equal(mask, spliced.weight_masks[name]) for name, mask in masks.items())
    spliced.apply_masks_()
    spliced.project_()
    assert all(torch.equal(p, before[name]) for name, p in spliced.named_parameters())


def test_training_the_model_trains_the_spliced_one(tokens):
    model = make_model(SPARSE)
    spliced = with_saes(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(tokens, return_type="loss").backward()
    optimizer.step()
    model.project_()
    assert torch.equal(spliced(tokens), model(tokens))
    assert (spliced.W_in != 0).float().mean() <= 1 / 4


def test_a_transcoder_reads_one_hook_point_and_writes_another(model, tokens):
    reads, writes = "blocks.1.hook_mlp_read", "blocks.1.hook_mlp_out"
    transcoder = Transcoder(
        TranscoderConfig(d_in=32, d_sae=64, d_out=32, apply_b_dec_to_input=False)
    )
    transcoder.cfg.metadata.hook_name, transcoder.cfg.metadata.hook_name_out = reads, writes
    _, cache = model.run_with_cache(tokens)
    change = transcoder.decode(transcoder.encode(cache[reads]))
    spliced = with_saes(model)
    found = spliced.run_with_saes(tokens, saes=[transcoder])
    expected = by_hand(model, tokens, writes, lambda x: change)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(spliced(tokens), model(tokens))
    spliced.add_sae(make_sae(reads, 32))
    with pytest.raises(ValueError, match=r"hook_mlp_read holds an SAE, and a transcoder can't"):
        spliced.add_sae(transcoder)


def test_special_tokens_can_pass_by_the_sae(tokenized, corpus):
    tokens = corpus.validation.windows(N_CTX, 24)
    tokens[::2, 5] = corpus.tokenizer.eos_token_id
    special = (tokens == corpus.tokenizer.eos_token_id)[..., None]
    hook_name = "blocks.0.hook_resid_post"
    spliced, sae = with_saes(tokenized), make_sae(hook_name, 32)
    found = spliced.run_with_saes(tokens, saes=[sae], exclude_special_tokens=True)
    expected = by_hand(tokenized, tokens, hook_name, lambda x: torch.where(special, x, sae(x)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_generation_runs_through_the_spliced_sae(model):
    spliced, sae = with_saes(model), make_sae("blocks.0.hook_resid_post", 32)
    tokens = torch.tensor([[3, 14, 15, 9]])
    spliced.add_sae(sae)
    found = spliced.generate(
        tokens, max_new_tokens=6, do_sample=False, use_past_kv_cache=False, verbose=False,
        stop_at_eos=False, return_type="tokens",
    )  # fmt: skip
    for _ in range(6):
        logits = by_hand(model, tokens, "blocks.0.hook_resid_post", lambda x: sae(x))
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, tokens)


def stock(model: HookedSparseTransformer) -> Any:
    """SAELens' own class, which does not keep our rules: what they are for."""
    plain = type("Plain", (HookedSAETransformer, HookedSparseTransformer), {})
    other = plain(copy.copy(model.cfg), sparsity=model.sparsity, attention=model.attention)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    ("hook_name", "message"),
    [
        ("blocks.0.hook_attn_reads", r"no hook point .*_reads .* near it: blocks.0.hook_attn_read"),
        ("blocks.0.hook_mlp_in", r"use_hook_mlp_in is False: the hook point never fires"),
        ("blocks.0.attn.hook_result", r"use_attn_result_hook is False: the hook point never fires"),
    ],
)
def test_an_sae_that_would_never_run_is_refused(model, tokens, hook_name, message):
    sae = make_sae(hook_name, 32)
    assert torch.equal(stock(model).run_with_saes(tokens, saes=[sae]), model(tokens))  # in silence
    with pytest.raises(ValueError, match=message):
        with_saes(model).add_sae(sae)


def test_an_sae_of_one_head_is_not_spliced_into_all(model, tokens):
    hook_name = "blocks.0.attn.hook_q"
    sae = make_sae(hook_name, 8, hook_head_index=1)
    _, cache = stock(model).run_with_cache_with_saes(tokens, saes=[sae])
    assert cache[f"{hook_name}.hook_sae_acts_post"].shape == (3, 12, 4, 24)  # all four heads
    with pytest.raises(ValueError, match=r"of head 1 of blocks.0.attn.hook_q"):
        with_saes(model).run_with_saes(tokens, saes=[sae])


def test_a_copy_has_mlps_of_its_own(model, tokens):
    def without_mlps(other: Any) -> Tensor:
        with torch.no_grad():
            for block in other.blocks:
                block.mlp.W_out.zero_()
        return other(tokens)

    theirs = stock(model)
    assert torch.equal(without_mlps(copy.deepcopy(theirs)), model(tokens))  # the original's MLPs
    spliced = with_saes(model)
    for twin in (copy.deepcopy(spliced), pickle.loads(pickle.dumps(spliced))):
        assert torch.equal(twin(tokens), model(tokens))
        assert not torch.allclose(without_mlps(twin), model(tokens), atol=1e-2)
    spliced.add_sae(make_sae("blocks.0.hook_resid_post", 32))
    with pytest.raises(ValueError, match=r"SAEs are attached, .* reset_saes"):
        copy.deepcopy(spliced)


def test_the_weights_alone_in_saelens_own_class_are_another_model(tokens):
    """A state dict is TransformerLens' own and says nothing of AbsTopK: use `with_saes`."""
    model = eager(SparsityConfig(weight_density=1 / 4, activation_density=1 / 4))
    theirs = HookedSAETransformer(copy.copy(model.cfg))
    theirs.load_state_dict(model.state_dict())
    assert not torch.allclose(theirs(tokens), model(tokens), atol=1e-1)
    with pytest.raises(RuntimeError, match=r"Unexpected key.* \"bigram.table\""):
        theirs.load_state_dict(eager(SPARSE).state_dict())


def test_a_saved_model_is_loaded_ready_for_saes(model, tokens, tmp_path):
    model.save(tmp_path / "model")
    spliced = sae_baseline.HookedSAESparseTransformer.load(tmp_path / "model")
    sae = make_sae("blocks.0.hook_resid_post", 32)
    found = spliced.run_with_saes(tokens, saes=[sae])
    assert torch.equal(found, with_saes(model).run_with_saes(tokens, saes=[sae]))
    with pytest.raises(AttributeError, match="no attribute 'HookedSAE'"):
        _ = sae_baseline.HookedSAE


# Text ---------------------------------------------------------------------------------------------


def test_a_dataset_has_every_window_once_in_the_order_of_training(corpus):
    rows = rows_of(token_dataset(corpus.train, 16, seed=5))
    assert len(rows) == corpus.train.windows_per_epoch(16)
    assert torch.equal(rows[:32], corpus.train.batch(0, batch_size=32, n_ctx=16, seed=5))
    assert torch.equal(rows[32:64], corpus.train.batch(1, batch_size=32, n_ctx=16, seed=5))
    spread = rows_of(token_dataset(corpus.validation, 16, n_windows=7, seed=None))
    assert torch.equal(spread, corpus.validation.windows(16, 7))


def test_more_windows_than_there_are_is_refused(corpus):
    with pytest.raises(ValueError, match=r"holds 1 to [\d,]+ windows of 16, got n_windows=1000000"):
        token_dataset(corpus.train, 16, n_windows=1_000_000)

"""Every rule of the configs, with its message."""

import pytest

from tl_sparse.config import PruningConfig, SparsityConfig, TrainingConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"weight_density": 0.0},
            r"weight_density is a fraction of kept entries in \(0, 1\], got 0.0",
        ),
        ({"weight_density": 1.5}, "got 1.5"),
        ({"weight_density": float("nan")}, "got nan"),
        ({"embedding_density": -0.1}, "embedding_density"),
        ({"activation_density": 0.0}, "activation_density"),
        ({"activation_density": {"resid": 0.5}}, "names the site 'resid'"),
        ({"activation_density": {"q": 2.0}}, r"activation_density\['q'\]"),
        ({"min_alive": -1}, "min_alive is a non-negative finite integer"),
    ],
)
def test_bad_sparsity_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SparsityConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_tokens": 0}, "n_tokens is a positive finite integer"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"betas": (0.9, 1.0)}, "betas are two numbers"),
        ({"warmup_fraction": 1.1}, "warmup_fraction is a fraction"),
        ({"anneal_start": 0.6, "anneal_stop": 0.5}, "comes after anneal_stop"),
        ({"regrow": False}, 'Set anneal="none"'),
        ({"batch_size": 6, "gradient_accumulation": 4}, "must divide batch_size"),
        ({"trackers": ("mlflow",)}, "each of trackers"),
    ],
)
def test_bad_training_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_loss": 0.0}, "target_loss"),
        ({"n_steps": -1}, "n_steps"),
        ({"init_noise_bias": 2.0}, r"tau in \[-1, 1\]"),
        ({"min_accuracy": 90.0}, "min_accuracy is a fraction"),
    ],
)
def test_bad_pruning_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**values)


@pytest.mark.parametrize("config", [SparsityConfig(), TrainingConfig(), PruningConfig()])
def test_configs_survive_a_round_trip_and_refuse_unknown_keys(config):
    assert type(config).from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=f"{type(config).__name__} has no field colour"):
        type(config).from_dict({"colour": 1})


def test_a_mapping_of_sites_leaves_the_others_dense():
    sparsity = SparsityConfig(activation_density={"q": 0.5})
    assert sparsity.site_density("q") == 0.5
    assert sparsity.site_density("mlp_out") == 1
    assert not sparsity.is_dense
    assert SparsityConfig().is_dense

"""Whole or not at all: model folders and files when things go wrong."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import SHAPE, make_model
from safetensors.torch import load_file, save_file

from tl_sparse.checkpoints import load_tokenizer, stored_bytes
from tl_sparse.config import SparsityConfig
from tl_sparse.files import recover_folder, whole_folder, write_text
from tl_sparse.model import HookedSparseTransformer

SPARSE = SparsityConfig(weight_density=1 / 4)
W_IN = "blocks.0.mlp.W_in"


@pytest.fixture
def folder(tmp_path):
    make_model(SPARSE).save(tmp_path / "model")
    return tmp_path / "model"


def damage(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_a_full_disk_leaves_the_old_model_in_place(folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def no_space(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", no_space)
    with pytest.raises(OSError, match="No space left"):
        make_model(SPARSE, n_layers=1).save(folder)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_saving_over_an_old_model_replaces_all_of_it(folder):
    other = make_model(SPARSE, n_layers=1)
    other.save(folder)
    assert HookedSparseTransformer.load(folder).cfg.n_layers == 1
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder, fraction):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(ValueError, match="is damaged or was cut short"):
        HookedSparseTransformer.load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("embed.W_E"), r"parameters missing: \['embed.W_E'\]"),
        (lambda t: t.update(extra=torch.zeros(1)), r"extra: \['extra'\]"),
        (lambda t: t.pop(f"{W_IN}/indices"), "safetensors has no 'blocks.0.mlp.W_in/indices'"),
        (
            lambda t: t.update({f"{W_IN}/values": t[f"{W_IN}/values"][1:]}),
            "the mask of .*W_in disagr",
        ),
        (lambda t: t[f"{W_IN}/indices"].add_(32 * 64), "the mask of .*W_in disagrees"),
        (lambda t: t[f"{W_IN}/indices"].sub_(1), "the mask of .*W_in disagrees"),
        (lambda t: t[f"{W_IN}/indices"].fill_(7), "the mask of .*W_in disagrees"),
        (lambda t: t[f"{W_IN}/values"].fill_(float("inf")), "W_in has NaN or infinite"),
        (lambda t: t.update({"unembed.b_U": torch.zeros(3)}), r"unembed.b_U is \(3,\)"),
        (lambda t: t["unembed.b_U"].fill_(float("nan")), "unembed.b_U has NaN"),
    ],
)
def test_a_folder_that_disagrees_with_itself_is_refused(folder, edit, message):
    damage(folder, edit)
    with pytest.raises(ValueError, match=message):
        HookedSparseTransformer.load(folder)


def test_a_folder_that_asks_for_a_tokenizer_with_code_runs_none(folder, tmp_path):
    """The host would fetch a tokenizer by its name, and trust what comes with it."""
    code = tmp_path / "tokenizer"
    code.mkdir()
    (code / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    auto = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (code / "tokenizer_config.json").write_text(json.dumps(auto))
    config = json.loads((folder / "config.json").read_text())
    config["cfg"] |= {"tokenizer_name": str(code), "trust_remote_code": True}
    (folder / "config.json").write_text(json.dumps(config))
    model = HookedSparseTransformer.load(folder)
    assert (model.tokenizer, model.cfg.trust_remote_code) == (None, False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("halved", [5, None, [[1]]])
def test_a_list_of_halved_tensors_that_is_none_is_refused(folder, halved):
    config = json.loads((folder / "config.json").read_text()) | {"in_half": halved}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        HookedSparseTransformer.load(folder)


def test_deep_nesting_and_a_tokenizer_that_is_none_are_refused(folder, tmp_path):
    for text in ("[]", "5", "null"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match="No tokenizer could be read"):
            load_tokenizer(tmp_path)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="missing or damaged"):
        HookedSparseTransformer.load(folder)


@pytest.mark.parametrize("cast", ["double", "half", "bfloat16"])
def test_a_model_that_was_cast_is_saved_as_it_is(cast, folder, tmp_path):
    model = getattr(HookedSparseTransformer.load(folder), cast)()
    model.save(tmp_path / "m")
    again = HookedSparseTransformer.load(tmp_path / "m")
    assert again.cfg.dtype == model.cfg.dtype == next(again.parameters()).dtype
    assert torch.equal(again.unembed.W_U, model.unembed.W_U)


def test_a_model_whose_parts_are_of_two_types_is_not_saved(tmp_path):
    model = make_model(SparsityConfig())
    model.blocks[0].double()
    with pytest.raises(ValueError, match=r"blocks.0.*float64 and cfg.dtype says torch.float32"):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_sparse_matrices_are_stored_sparsely(tmp_path):
    """At density 1/64 an index and a value for each kept weight are 1/32 of the dense bytes."""
    model = make_model(SparsityConfig(weight_density=1 / 64, bigram_table=True))
    model.save(tmp_path / "m")
    names = [
        n for n in model.weight_masks if n.split(".")[-1].startswith("W_") and "embed" not in n
    ]
    dense = sum(model.get_parameter(n).nbytes for n in names)
    stored = stored_bytes(tmp_path / "m")
    assert (stored.masked, stored.masked_if_dense) == (dense // 32, dense)
    whole = (tmp_path / "m/model.safetensors").stat().st_size
    assert stored.masked + stored.dense <= whole <= stored.masked + stored.dense + 10_000
    again = HookedSparseTransformer.load(tmp_path / "m")
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    for name, mask in model.weight_masks.items():
        assert torch.equal(again.weight_masks[name], mask)


@pytest.mark.parametrize("density", [0.2, 0.26, 1.0])
def test_masks_that_keep_another_number_than_the_densities_say_are_refused(folder, density):
    config = json.loads((folder / "config.json").read_text())
    config["sparsity"]["weight_density"] = density
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"keep (more|fewer) entries, and config.json says exact"):
        HookedSparseTransformer.load(folder)


def test_a_model_saved_while_annealing_is_read_as_it_was(tmp_path):
    model = make_model(SPARSE)
    model.reopen_(0)
    model.project_(weight_density=0.6)
    model.save(tmp_path / "m")
    again = HookedSparseTransformer.load(tmp_path / "m")
    assert again.weight_masks[W_IN].sum() == int(0.6 * 32 * 64)
    assert torch.equal(again.W_in, model.W_in)


def test_what_a_model_was_trained_on_is_kept(tmp_path):
    model = make_model(SPARSE)
    model.trained_on = ("a1b2", "c3d4")
    model.save(tmp_path / "m")
    assert HookedSparseTransformer.load(tmp_path / "m").trained_on == ("a1b2", "c3d4")


def test_a_weight_outside_its_mask_is_not_lost_in_silence(folder):
    model = HookedSparseTransformer.load(folder)
    place = (~model.weight_masks[W_IN]).nonzero()[0]
    with torch.no_grad():
        model.get_parameter(W_IN)[tuple(place)] = 1.0
    with pytest.raises(ValueError, match="has 1 weights outside its mask, which would be lost"):
        model.save(folder)
    model.apply_masks_()
    model.save(folder)


def test_missing_folders_and_foreign_configs_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        HookedSparseTransformer.load(tmp_path / "nothing")
    config = json.loads((folder / "config.json").read_text())
    for edit, message in (
        ({"format_version": 99}, "is not a tl_sparse model of format 3"),
        ({"cfg": config["cfg"] | {"colour": "red"}}, "has colour, unknown to TransformerLens"),
        ({"sparsity": {"weight_density": 0.0}}, "weight_density is a fraction"),
        ({"masked": [1]}, "config.json is damaged"),
        ({"masked": {"blocks.0.mlp.W_in": {"shape": [32, 64]}}}, "config.json is damaged"),
        ({"masked": config["masked"] | {W_IN: {"shape": [64, 32], "n_kept": 512}}}, r"\(64, 32\)"),
    ):
        (folder / "config.json").write_text(json.dumps(config | edit))
        with pytest.raises(ValueError, match=message):
            HookedSparseTransformer.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="missing or damaged"):
        HookedSparseTransformer.load(folder)


def test_loading_leaves_the_random_state_alone(folder):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = HookedSparseTransformer.load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.cfg.seed == SHAPE["seed"]


def test_an_exception_while_writing_leaves_nothing_behind(tmp_path):
    def fail_half_way():
        with whole_folder(tmp_path / "a") as place:
            (place / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "text", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "text", "\ud800")
    assert (tmp_path / "text").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_a_process_killed_between_the_two_renames_loses_nothing(tmp_path):
    """The old folder stands aside under a hidden name; the next reader puts it back."""
    (tmp_path / ".a.x1.old" / "a").mkdir(parents=True)
    (tmp_path / ".a.x1.old" / "a" / "text").write_text("old")
    recover_folder(tmp_path / "a")
    assert (tmp_path / "a" / "text").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    with whole_folder(tmp_path / "a") as place:
        (place / "text").write_text("old")
    calls, original = [], os.replace

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return original(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="Input/output"), whole_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "text").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_another_process_has_just_made_is_replaced(tmp_path, monkeypatch):
    with whole_folder(tmp_path / "a") as place:
        (place / "text").write_text("theirs")
    is_dir = Path.is_dir  # it looked a moment too early
    monkeypatch.setattr(Path, "is_dir", lambda path: path.name != "a" and is_dir(path))
    with whole_folder(tmp_path / "a") as place:
        (place / "text").write_text("ours")
    assert (tmp_path / "a" / "text").read_text() == "ours"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]

"""Sources, tokenizer, cache and batches, against oracles that share no code with ours."""

import ast
import contextlib
import copy
import errno
import hashlib
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import sysconfig
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_sparse import data
from tl_sparse.data import cache, corpora, survey
from tl_sparse.data.mixture import library_part, mixture

TEXTS = [f"x_{i} = {i}\nprint('value {i}')\n" for i in range(60)]
CODE = list(data.generate_programs(300, seed=3))


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_tokenizer(CODE, vocab_size=600)


@pytest.fixture
def make(tmp_path):
    def make_corpus(source, **options):
        options = {"cache_dir": tmp_path / "cache", "vocab_size": 300, "progress": False} | options
        return data.corpus(source, **options)

    return make_corpus


@pytest.fixture
def split(tmp_path):
    def make_split(n_tokens, dtype="uint16"):
        path = tmp_path / f"{n_tokens}.bin"
        path.write_bytes(np.arange(n_tokens, dtype=dtype).tobytes())
        return data.TokenSplit(path, dtype=dtype, n_bytes=3 * n_tokens)

    return make_split


def texts_of(split, tokenizer):
    """The documents of a split, by decoding and cutting at the end-of-text token."""
    return tokenizer.decode(split.tokens.tolist()).split("<|endoftext|>")[:-1]


# Sources ------------------------------------------------------------------------------------------


def test_standard_library_is_sorted_and_without_tests_or_third_parties():
    documents = list(data.standard_library())
    names = [document.name for document in documents]
    assert names == sorted(names)
    assert {"ast.py", "json/decoder.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert folders.isdisjoint({"test", "tests", "idle_test", "site-packages", "dist-packages"})
    by_name = {document.name: document.text for document in documents}
    assert by_name["ast.py"] == Path(ast.__file__).read_text(encoding="utf-8")
    assert sum(map(len, by_name.values())) > 8_000_000


def test_standard_library_reads_cookies_and_skips_what_does_not_decode(tmp_path, monkeypatch):
    (tmp_path / "test").mkdir()
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "cookie.py").write_bytes(b"# coding: no-such-codec\n")
    (tmp_path / "empty.py").write_bytes(b"")
    (tmp_path / "test" / "test_x.py").write_bytes(b"assert True\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert [(d.name, d.text) for d in data.standard_library()] == [
        ("latin.py", "# coding: latin-1\nx = 'é'\n")
    ]
    with_tests = [d.name for d in data.standard_library(include_tests=True)]
    assert with_tests == ["latin.py", "test/test_x.py"]


def test_installed_python_is_the_library_with_tests_and_each_package_once(tmp_path, monkeypatch):
    library, packages = tmp_path / "library", tmp_path / "packages"
    for path, code in {
        library / "a.py": b"a = 1\n",
        library / "tests" / "b.py": b"b = 1\n",
        library / "site-packages" / "c.py": b"c = 1\n",
        packages / "d" / "__init__.py": b"d = 1\n",
        packages / "d" / "copy.py": b"a = 1\n",
        packages / "d" / "broken.py": b"x = '\xff'\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(code)
    paths = {"stdlib": library, "purelib": packages, "platlib": packages}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {k: str(v) for k, v in paths.items()})
    names = [document.name for document in data.installed_python()]
    assert names == ["a.py", "tests/b.py", "d/__init__.py"]
    options = {"n_characters": 36, "vocab_size": 260, "progress": False, "cache_dir": tmp_path}
    some = data.python_corpus(library="installed", generated_fraction=0.0, **options)
    assert some.train.n_bytes + some.validation.n_bytes == 3 * 6


def test_another_library_is_refused():
    with pytest.raises(ValueError, match='"standard" or "installed", got \'all\''):
        inspect.unwrap(data.python_corpus)(library="all")


def test_a_zipped_standard_library_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "python.zip")})
    with pytest.raises(ValueError, match=r"python\.zip holds none.*generated_fraction=1"):
        data.standard_library()


def test_folder_gives_files_exactly_and_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.py").write_bytes("ä\r\n".encode())
    (tmp_path / "a.py").write_bytes(b"1\n")
    (tmp_path / "c.txt").write_bytes(b"text")
    (tmp_path / "empty.py").touch()
    assert [(d.name, d.text) for d in data.folder(tmp_path)] == [
        ("a.py", "1\n"),
        ("b/a.py", "ä\r\n"),
    ]
    assert [d.name for d in data.folder(tmp_path, pattern="*.txt")] == ["c.txt"]


def test_undecodable_bytes_fail_are_replaced_or_skipped(tmp_path):
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_bytes(b"abc\xffdef")
    with pytest.raises(ValueError, match=r"bad\.py has a byte 0xff at offset 3.*undecodable="):
        list(data.folder(tmp_path))
    replaced = {d.name: d.text for d in data.folder(tmp_path, undecodable="replace")}
    assert replaced["bad.py"] == "abc\N{REPLACEMENT CHARACTER}def"
    assert [d.name for d in data.folder(tmp_path, undecodable="skip")] == ["good.py"]


def test_missing_folders_and_folders_without_matches_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"folder of texts must exist.*put it in a list"):
        data.folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"matches '\*\*/\*\.py'"):
        data.folder(tmp_path)
    with pytest.raises(ValueError, match="must exist, got 'x = 1'"):
        data.documents("x = 1")


def test_installed_packages_are_found_without_importing_them():
    names = [document.name for document in data.installed_package("tqdm")]
    assert "std.py" in names
    assert names == sorted(names)
    with pytest.raises(ValueError, match="no 'no_such_package'"):
        data.installed_package("no_such_package")
    with pytest.raises(ValueError, match="not made of Python files"):
        data.installed_package("itertools")


def test_rows_of_hugging_face_datasets_are_documents():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "code": [text[::-1] for text in TEXTS]})
    assert [d.text for d in data.documents(rows)] == TEXTS
    stream = rows.to_iterable_dataset()
    assert [d.text for d in data.documents(stream, column="code")] == [t[::-1] for t in TEXTS]
    with pytest.raises(ValueError, match=r"column 'content', but item 0 has \['text', 'code'\]"):
        list(data.documents(rows, column="content"))
    with pytest.raises(ValueError, match=r"source\['train'\]"):
        data.documents(datasets.DatasetDict(train=rows))


def test_items_that_are_no_texts_are_errors():
    with pytest.raises(ValueError, match="item 1 is of type int"):
        list(data.documents(["x", 1]))


# Tokenizer ----------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_any_text_comes_back_exactly(text):
    tokens = SMALL.encode(text)
    assert SMALL.decode(tokens) == text
    assert not tokens or tokens[0] != SMALL.bos_token_id or text.startswith("<|endoftext|>")


SMALL = data.train_tokenizer(CODE[:50], vocab_size=400)


def test_the_same_texts_give_the_same_tokenizer_in_another_process():
    script = (
        "from tl_sparse import data\n"
        "tokenizer = data.train_tokenizer(data.generate_programs(50, seed=3), vocab_size=400)\n"
        "import sys; sys.stdout.write(data.tokenizer_hash(tokenizer))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    other = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout == data.tokenizer_hash(SMALL)


def test_tokenizer_hash_sees_content_and_not_the_last_call(tokenizer):
    before = data.tokenizer_hash(tokenizer)
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=1)
    assert data.tokenizer_hash(tokenizer) == before == data.tokenizer_hash(copy.deepcopy(tokenizer))
    assert data.tokenizer_hash(SMALL) != before


def test_quotes_and_brackets_join_into_single_tokens(tokenizer):
    for text in ("('", '("', "')", '")', "')\n", '")\n', "]\n", "]]\n"):
        assert len(tokenizer.encode(text)) == 1, text
    opening = tokenizer.tokenize("print('hello world')")
    assert "('" in opening
    assert opening[-1] == "')"


def test_transformer_lens_takes_the_tokenizer_as_it_is(tokenizer):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=16, d_head=4, act_fn="relu", d_vocab=600,
        default_prepend_bos=False, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=copy.deepcopy(tokenizer))
    tokens = model.to_tokens("x = 1\n")
    assert tokens[0].tolist() == tokenizer.encode("x = 1\n")


def test_a_vocabulary_below_257_is_refused():
    with pytest.raises(ValueError, match=r"at least 257.*got 256"):
        data.train_tokenizer(["a"], vocab_size=256)


# Corpus -------------------------------------------------------------------------------------------


def test_every_document_is_on_one_side_followed_by_end_of_text(make):
    corpus = make(TEXTS + TEXTS[:10])
    train = texts_of(corpus.train, corpus.tokenizer)
    validation = texts_of(corpus.validation, corpus.tokenizer)
    assert sorted(train + validation) == sorted(TEXTS + TEXTS[:10])
    assert set(train).isdisjoint(validation)
    assert train
    assert validation
    assert train == [text for text in TEXTS + TEXTS[:10] if text in set(train)]


def test_the_side_of_a_document_is_its_hash_and_not_its_position(make):
    fraction = 0.3
    expected = {
        text
        for text in TEXTS
        if int(hashlib.sha256(text.encode()).hexdigest(), 16) < fraction * 2**256
    }
    for order in (TEXTS, TEXTS[::-1], TEXTS[20:]):
        corpus = make(order, validation_fraction=fraction)
        assert set(texts_of(corpus.validation, corpus.tokenizer)) == expected & set(order)


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("first", range(6))
def test_two_different_documents_always_fill_both_sides(make, fraction, first):
    corpus = make([TEXTS[first], TEXTS[first + 1], TEXTS[first]], validation_fraction=fraction)
    sides = [set(texts_of(s, corpus.tokenizer)) for s in (corpus.train, corpus.validation)]
    assert [len(side) for side in sides] == [1, 1]


def test_corpora_without_two_different_documents_are_errors(make):
    for source in ([], [""], iter(())):
        with pytest.raises(ValueError, match="needs text"):
            make(source)
    with pytest.raises(ValueError, match=r"two different documents.*2 that are all alike"):
        make(["x", "x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction is a fraction between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction is a fraction between 0 and 1"),
        ({"max_tokens": 1}, "max_tokens counts both sides"),
        ({"vocab_size": 100}, "vocab_size must be at least 257"),
    ],
)
def test_arguments_out_of_range_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(TEXTS, **options)


def test_lone_surrogates_are_an_error_that_names_the_text(make):
    with pytest.raises(ValueError, match="item 1 has a lone surrogate at character 2"):
        make(["good", "ab\ud800"])


def test_lists_iterators_folders_and_datasets_give_the_same_corpus(make, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "code"
    folder.mkdir()
    for index, text in enumerate(TEXTS):
        (folder / f"{index:03}.py").write_text(text)
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    sources = [
        TEXTS, iter(TEXTS), folder, str(folder), rows, rows.to_iterable_dataset(),
        (data.Document("any", text) for text in TEXTS),
    ]  # fmt: skip
    made = [make(source, cache_dir=tmp_path / str(i)) for i, source in enumerate(sources)]
    assert len({corpus.hash for corpus in made}) == 1
    for corpus in made:
        np.testing.assert_array_equal(corpus.train.tokens, made[0].train.tokens)


def test_the_hash_depends_on_content_tokenizer_and_split(make, tokenizer):
    variants = [
        make(TEXTS),
        make(TEXTS[1:]),
        make(TEXTS[::-1]),
        make(TEXTS, vocab_size=290),
        make(TEXTS, tokenizer=tokenizer),
        make(TEXTS, validation_fraction=0.5),
        make(TEXTS, max_tokens=500),
    ]
    assert len({corpus.hash for corpus in variants}) == len(variants)
    # A tokenizer that is given counts as the same tokenizer trained.
    assert make(TEXTS, tokenizer=variants[0].tokenizer).hash == variants[0].hash


def test_a_second_call_opens_the_first_ones_tokens(make, monkeypatch):
    first = make(TEXTS)

    def forbidden(*args, **kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(corpora, "encoder", forbidden)
    monkeypatch.setattr(corpora, "train_tokenizer", forbidden)
    for source in (TEXTS, iter(TEXTS)):
        second = make(source)
        assert second.hash == first.hash
        assert second.train.path == first.train.path
        assert data.tokenizer_hash(second.tokenizer) == data.tokenizer_hash(first.tokenizer)
        assert repr(second) == repr(first)


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "corpus.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_a_torn_cache_is_built_anew(make, tmp_path, name, damage):
    corpus = make(TEXTS)
    expected = {path.name: path.read_bytes() for path in corpus.train.path.parent.iterdir()}
    damaged = corpus.train.path.with_name(name)
    if damage == "delete":
        damaged.unlink()
    else:
        os.truncate(damaged, damaged.stat().st_size - 2)
    again = make(TEXTS)
    assert again.hash == corpus.hash
    assert {p.name: p.read_bytes() for p in again.train.path.parent.iterdir()} == expected
    assert_no_workspace(tmp_path / "cache")


def assert_no_workspace(folder):
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_and_says_what_to_do(make, tmp_path, monkeypatch, code):
    def full(*args, **kwargs):
        raise OSError(code, "no room")

    monkeypatch.setattr(corpora._Side, "add", full)
    with pytest.raises(OSError, match=r"cache is full .*cache.*TL_SPARSE_CACHE") as caught:
        make(TEXTS)
    assert caught.value.errno == code
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert_no_workspace(tmp_path / "cache")
    monkeypatch.undo()
    assert make(TEXTS).train.n_tokens > 0


@contextlib.contextmanager
def files_of_20_kb():
    """The kernel refuses to write a file beyond 20,000 bytes, as a full disk would.

    Around the call alone: pytest's own report may be going to a file that is longer already.
    """
    resource = pytest.importorskip("resource")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("wrap", [list, iter])  # the tokens fail to be written, or the spool
def test_a_real_limit_on_writing_leaves_nothing(make, tmp_path, tokenizer, wrap):
    texts = wrap([f"{i} " * 50 for i in range(1000)])
    with pytest.raises(OSError, match="cache is full"), files_of_20_kb():
        make(texts, tokenizer=tokenizer)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_interrupted_source_leaves_no_corpus(make, tmp_path):
    def interrupted():
        yield from TEXTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(interrupted())
    assert list((tmp_path / "cache").iterdir()) == []


def test_builders_at_the_same_time_do_not_disturb_each_other(make, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: make(TEXTS * 5), range(8)))
    assert len({corpus.hash for corpus in made}) == 1
    for corpus in made:
        np.testing.assert_array_equal(corpus.train.tokens, made[0].train.tokens)
    assert_no_workspace(tmp_path / "cache")


def test_a_builder_that_comes_second_keeps_the_first_ones_corpus(make, tmp_path):
    corpus = make(TEXTS)
    place = corpus.train.path.parent
    rival = tmp_path / "rival"
    rival.mkdir()
    inode = place.stat().st_ino
    cache.publish(rival, place)
    assert place.stat().st_ino == inode


def test_a_source_that_changes_between_readings_is_an_error(make):
    class Changing:
        n_readings = 0

        def __iter__(self):
            self.n_readings += 1
            return iter(TEXTS if self.n_readings == 1 else TEXTS[::-1])

    with pytest.raises(ValueError, match=r"second reading gave others.*copied to disk"):
        make(Changing())


def test_a_generator_is_read_once_and_streamed(make, monkeypatch, tokenizer):
    monkeypatch.setattr(corpora, "CHUNK", 10_000)
    size, read = 4_000, []

    def stream():
        for index in range(400):
            read.append(index)
            yield f"# {index}\n" + "x = 1\n" * (size // 6)

    tracemalloc.start()
    corpus = make(stream(), tokenizer=tokenizer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == list(range(400))
    assert corpus.train.n_bytes + corpus.validation.n_bytes > 400 * size * 0.9
    assert peak < 400 * size / 2


def test_max_tokens_is_shared_out_and_stops_an_endless_stream(make, tokenizer):
    def endless():
        index = 0
        while True:
            yield f"x_{index} = {index}\n" * 20
            index += 1

    corpus = make(endless(), tokenizer=tokenizer, max_tokens=1001, validation_fraction=0.1)
    assert (corpus.train.n_tokens, corpus.validation.n_tokens) == (901, 100)
    decoded = corpus.tokenizer.decode(corpus.train.tokens.tolist()).replace("<|endoftext|>", "")
    assert corpus.train.n_bytes == pytest.approx(len(decoded), rel=0.02)


def test_bytes_per_token_counts_utf8_and_separators(make, tokenizer):
    texts = ["ä€x\n" * 3, "print('y')\n", "z = 2\n", "ü" * 9]
    corpus = make(texts, tokenizer=tokenizer, validation_fraction=0.5)
    for side in (corpus.train, corpus.validation):
        own = texts_of(side, tokenizer)
        assert side.n_bytes == sum(len(text.encode()) for text in own)
        n_tokens = sum(len(tokenizer.encode(text)) + 1 for text in own)
        assert side.bytes_per_token == side.n_bytes / n_tokens


def test_special_tokens_inside_a_text_are_text(make, tokenizer):
    corpus = make(["a<|endoftext|>b", "c"], tokenizer=tokenizer, validation_fraction=0.5)
    n_ends = sum(
        int((side.tokens == tokenizer.eos_token_id).sum())
        for side in (corpus.train, corpus.validation)
    )
    assert n_ends == 2


def test_padding_and_truncation_of_the_callers_tokenizer_change_nothing(make, tokenizer):
    plain = make(TEXTS, tokenizer=tokenizer)
    limited = copy.deepcopy(tokenizer)
    limited.backend_tokenizer.enable_truncation(max_length=3)
    limited.backend_tokenizer.enable_padding(length=50)
    same = make(TEXTS, tokenizer=limited, cache_dir=plain.train.path.parents[1] / "other")
    np.testing.assert_array_equal(same.train.tokens, plain.train.tokens)
    assert limited.backend_tokenizer.truncation is not None


def test_a_tokenizer_without_an_end_is_refused(make):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    endless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="needs an end-of-text token"):
        make(TEXTS, tokenizer=endless)


def test_large_vocabularies_are_stored_in_four_bytes(make):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<end>": 0, "last": 70_000, **{f"w{i}": i for i in range(1, 50)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    wide = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    corpus = make(["w1 last", "w2 last"], tokenizer=wide)
    assert corpus.d_vocab == 70_001
    assert corpus.train.tokens.dtype == np.uint32
    assert corpus.train.tokens[1] == 70_000


def test_the_default_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("TL_SPARSE_CACHE", "/a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert data.default_cache_dir() == Path("/a/b")
    monkeypatch.delenv("TL_SPARSE_CACHE")
    assert data.default_cache_dir() == Path("/c/tl_sparse")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert data.default_cache_dir() == Path("/home/me/.cache/tl_sparse")


def test_progress_goes_to_stderr_and_can_be_switched_off(make, tmp_path, capfd):
    make(TEXTS)
    assert capfd.readouterr() == ("", "")
    make(TEXTS, progress=True, cache_dir=tmp_path / "other")
    out, err = capfd.readouterr()
    assert out == ""
    assert "tokenising" in err


# The default mixture ------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_the_mixture_has_the_fraction_asked_for_all_along(fraction):
    n_characters = 120_000
    library = library_part(round(n_characters * (1 - fraction)), seed=0)
    n_library = sum(len(document.text) for document in library)
    assert n_library == pytest.approx(n_characters * (1 - fraction), rel=0.05)
    documents = list(mixture(library, round(n_characters * fraction), seed=0))
    for part in (documents[: len(documents) // 2], documents):
        generated = [d.text for d in part if d.name.startswith("generated")]
        n_all = sum(len(document.text) for document in part)
        assert sum(map(len, generated)) / n_all == pytest.approx(
            fraction, abs=0.2
        )  # one file weighs much here
    for document in documents:
        if document.name.startswith("generated"):
            ast.parse(document.text)


def test_no_generated_program_of_validation_is_in_training(tmp_path):
    options = {"n_characters": 40_000, "vocab_size": 400, "cache_dir": tmp_path, "progress": False}
    corpus = data.python_corpus(generated_fraction=1.0, **options)
    train, validation = (texts_of(s, corpus.tokenizer) for s in (corpus.train, corpus.validation))
    assert set(train).isdisjoint(validation)
    assert validation
    everything = set(data.generate_programs(200, seed=0))
    assert everything.issuperset(train)
    assert everything.issuperset(validation)
    other_seed = data.python_corpus(generated_fraction=1.0, seed=1, **options)
    assert set(texts_of(other_seed.train, other_seed.tokenizer)).isdisjoint(train)


def test_python_corpus_is_opened_again_without_writing_programs(tmp_path, monkeypatch):
    from tl_sparse.data import mixture as module

    options = {"n_characters": 40_000, "vocab_size": 400, "cache_dir": tmp_path, "progress": False}
    first = data.python_corpus(**options)
    monkeypatch.setattr(module, "build", None)
    second = data.python_corpus(**options)
    assert second.hash == first.hash
    given = data.python_corpus  # with the tokenizer given, the recipe is another, the corpus not
    monkeypatch.undo()
    assert given(tokenizer=first.tokenizer, **options).hash == first.hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generated_fraction": 1.5}, r"fraction in \[0, 1\], got 1.5"),
        ({"n_characters": 0}, "n_characters is a count"),
        ({"generated_fraction": 1.0, "n_characters": 10}, "two different documents"),
    ],
)
def test_python_corpus_refuses_arguments_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        data.python_corpus(cache_dir=tmp_path, progress=False, **options)


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_tokens", "n_ctx", "batch_size"),
    [(103, 5, 4), (64, 8, 3), (20, 7, 1), (9, 5, 2), (5, 5, 2), (400, 1, 16)],
)
def test_every_epoch_visits_each_window_exactly_once(split, n_tokens, n_ctx, batch_size):
    tokens = split(n_tokens)
    n_windows, n_epochs = tokens.windows_per_epoch(n_ctx), 4
    n_steps = -(-n_windows * n_epochs // batch_size)
    rows = torch.cat(
        [tokens.batch(t, batch_size=batch_size, n_ctx=n_ctx, seed=5) for t in range(n_steps)]
    )
    orders, offsets = set(), set()
    for epoch in range(n_epochs):
        visited = rows[epoch * n_windows : (epoch + 1) * n_windows]
        starts = visited[:, 0].tolist()  # token i is i: a window tells where it begins
        assert (visited == visited[:, :1] + torch.arange(n_ctx)).all()
        offset = min(starts)
        assert 0 <= offset < n_ctx
        assert sorted(starts) == [offset + i * n_ctx for i in range(n_windows)]
        assert max(starts) + n_ctx <= n_tokens
        orders.add(tuple(starts))
        offsets.add(offset)
    if n_windows > 5:
        assert len(orders) == n_epochs
        assert n_ctx == 1 or len(offsets) > 1


def test_a_batch_is_a_function_of_its_arguments(split):
    tokens = split(1000)
    arguments = {"batch_size": 4, "n_ctx": 16, "seed": 0}
    forward = [tokens.batch(step, **arguments) for step in range(60)]
    fresh = data.TokenSplit(tokens.path, dtype="uint16", n_bytes=1)
    for step in reversed(range(60)):
        torch.testing.assert_close(fresh.batch(step, **arguments), forward[step], rtol=0, atol=0)
    assert forward[0].dtype == torch.int64
    assert not torch.equal(forward[0], tokens.batch(0, batch_size=4, n_ctx=16, seed=1))


def test_batches_are_the_same_on_every_machine(split):
    starts = split(1000).batch(7, batch_size=5, n_ctx=16, seed=3)[:, 0].tolist()
    assert starts == [920, 552, 264, 648, 504]


def test_a_batch_larger_than_the_epoch_goes_on_with_the_next(split):
    rows = split(20).batch(0, batch_size=7, n_ctx=6, seed=0)
    assert rows.shape == (7, 6)


def test_validation_windows_are_spread_and_do_not_overlap(split):
    tokens = split(1000)
    windows = tokens.windows(n_ctx=10, n_windows=7)
    starts = windows[:, 0].tolist()
    gaps = np.diff(starts)
    assert starts[0] == 0
    assert gaps.min() >= 10
    assert gaps.max() - gaps.min() <= 10
    assert 1000 - starts[-1] <= gaps.max() + 10
    assert torch.equal(tokens.windows(10, 100).flatten(), torch.arange(1000))
    with pytest.raises(ValueError, match="holds 1 to 100 windows of 10, got n_windows=101"):
        tokens.windows(10, 101)


def test_too_few_tokens_for_a_window_and_bad_arguments_are_errors(split):
    tokens = split(10)
    for call in (
        lambda: tokens.batch(0, batch_size=1, n_ctx=11, seed=0),
        lambda: tokens.windows(11, 1),
        lambda: tokens.windows_per_epoch(0),
    ):
        with pytest.raises(ValueError, match="needs 1 <= n_ctx <= 10"):
            call()
    for bad in ({"step": -1}, {"batch_size": 0}, {"seed": -1}):
        arguments = {"step": 0, "batch_size": 1, "n_ctx": 5, "seed": 0} | bad
        with pytest.raises(ValueError, match="0 or more"):
            tokens.batch(**arguments)


def test_tokens_are_read_only_and_stay_behind_when_pickled(split):
    tokens = split(50_000)
    with pytest.raises(ValueError, match="read-only"):
        tokens.tokens[0] = 1
    tokens.batch(0, batch_size=2, n_ctx=8, seed=0)
    pickled = pickle.dumps(tokens)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).tokens[7] == 7


def test_the_entry_on_disk_says_what_it_is(make):
    corpus = make(TEXTS)
    entry = json.loads(corpus.train.path.with_name("corpus.json").read_text())
    assert entry["hash"] == corpus.hash == corpus.train.path.parent.name
    assert entry["train"]["n_tokens"] == corpus.train.n_tokens == len(corpus.train)
    assert entry["train"]["n_documents"] + entry["validation"]["n_documents"] == len(TEXTS)
    assert entry["settings"] == {"validation_fraction": 0.05, "max_tokens": None}


def test_the_tokenizer_is_trained_on_the_training_side_only(make, monkeypatch):
    seen = []

    def spy(texts, vocab_size):
        seen.extend(texts)
        return data.train_tokenizer(seen, vocab_size)

    monkeypatch.setattr(corpora, "train_tokenizer", spy)
    monkeypatch.setattr(survey, "TRAINING_SAMPLE", 200)
    corpus = make(TEXTS, validation_fraction=0.4)
    train = texts_of(corpus.train, corpus.tokenizer)
    assert seen == train[: len(seen)]
    assert 200 <= sum(map(len, seen)) < 240

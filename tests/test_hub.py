"""Up to the hub and down again, over HTTP, against a stand-in on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import make_model

from tl_sparse.config import SparsityConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.tokenizer import train_tokenizer

SPARSE = SparsityConfig(weight_density=1 / 4, activation_density=1 / 2)
COMMIT = "0" * 40


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub as `upload_folder` and `snapshot_download` ask for."""

    repositories: dict[str, dict[str, bytes]]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, body: object, status: int = 200) -> None:
        self.answer(json.dumps(body).encode(), status, Content_Type="application/json")

    def do_POST(self) -> None:
        length = self.headers["Content-Length"]
        body = self.rfile.read(int(length)) if length else self.chunks()
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization") or "me", asked["name"]]))
            self.repositories.setdefault(name, {})
            self.answer_json({"url": f"{self.address()}/{name}", "id": name, "name": name})
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            self.answer_json({"files": files})
        elif "/commit/" in path:
            repository = "/".join(path.split("/")[3:5])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.repositories[repository][entry["value"]["path"]] = content
            url = f"{self.address()}/{repository}/commit/{COMMIT}"
            self.answer_json({"commitOid": COMMIT, "commitUrl": url, "success": True})
        else:
            self.answer_json({"error": f"no {path}"}, 404)

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            files = self.repositories.get(name)
            if files is None:
                return self.answer(b"", 404, X_Error_Code="RepoNotFound")
            listed = [{"rfilename": f} for f in files]
            tree = [
                {"type": "file", "path": f, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for f, b in files.items()
            ]
            if "tree" in parts:
                return self.answer_json(tree)
            return self.answer_json({"id": name, "sha": COMMIT, "siblings": listed})
        if len(parts) > 4 and parts[2] == "resolve":
            content = self.repositories.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
            if content is not None:
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.answer(content, X_Repo_Commit=COMMIT, ETag=etag)
        return self.answer(b"", 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def address(self) -> str:
        return f"http://{self.headers['Host']}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, dict]]:
    """Give the address of the stand-in and what it holds."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    handler = type("Handler", (StandIn,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.repositories
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_goes_up_and_comes_down_the_same(hub):
    endpoint, held = hub
    tokenizer = train_tokenizer(["def f(x):\n    return ('a', x)\n"] * 9, vocab_size=300)
    model = make_model(SPARSE, d_vocab=300)
    model.set_tokenizer(tokenizer)
    address = model.push_to_hub("me/quotes", token="hf_x", endpoint=endpoint)
    assert address == f"{endpoint}/me/quotes"
    assert {"config.json", "model.safetensors", "README.md"} < set(held["me/quotes"])
    card = held["me/quotes"]["README.md"].decode()
    assert 'from_pretrained("me/quotes")' in card
    assert repr(model) in card
    again = HookedSparseTransformer.from_pretrained("me/quotes", endpoint=endpoint)
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    assert again.sparsity == SPARSE
    assert again.to_tokens("return x").tolist() == model.to_tokens("return x").tolist()


def test_what_the_hub_does_not_have_is_a_clear_error(hub):
    endpoint, held = hub
    with pytest.raises(ValueError, match="'me/nothing' is neither a folder nor a model of"):
        HookedSparseTransformer.from_pretrained("me/nothing", endpoint=endpoint)
    held["me/other"] = {"config.json": b'{"model_type": "gpt2"}'}
    with pytest.raises(ValueError, match="not a tl_sparse model of format"):
        HookedSparseTransformer.from_pretrained("me/other", endpoint=endpoint)
    with pytest.raises(ValueError, match="A repository is named user/name, got 'a b/c'"):
        make_model(SPARSE).push_to_hub("a b/c", endpoint=endpoint)


def test_a_folder_comes_first(tmp_path):
    model = make_model(SPARSE)
    model.save(tmp_path / "gpt2")
    again = HookedSparseTransformer.from_pretrained(tmp_path / "gpt2", device="cpu")
    assert torch.equal(again.W_in, model.W_in)
    with pytest.raises(ValueError, match="A saved model is loaded as it is; fold_ln"):
        HookedSparseTransformer.from_pretrained(tmp_path / "gpt2", fold_ln=False)


def test_a_transformer_lens_name_gives_that_model_at_density_1(monkeypatch):
    """A random GPT-2 of Hugging Face's, loaded under the name, computes what theirs computes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=16, vocab_size=50)
    config.architectures, config.n_ctx = ["GPT2LMHeadModel"], 16
    theirs = GPT2LMHeadModel(config).eval()
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **k: config)
    tokenizer = train_tokenizer(["def f(x):\n"], vocab_size=257)
    model = HookedSparseTransformer.from_pretrained(
        "gpt2", hf_model=theirs, tokenizer=tokenizer, device="cpu"
    )
    assert type(model) is HookedSparseTransformer
    assert model.sparsity.is_dense
    tokens = torch.randint(0, 50, (2, 9))
    with torch.no_grad():
        expected = theirs(tokens).logits.log_softmax(-1)
    torch.testing.assert_close(model(tokens).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_a_revision_reaches_transformer_lens_too(monkeypatch):
    asked = {}

    def note(name, *args, **kwargs):
        asked.update(kwargs, name=name)
        raise OSError("no such revision")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", note)
    with pytest.raises(OSError, match="no such revision"):
        HookedSparseTransformer.from_pretrained("gpt2", revision="draft", device="cpu")
    assert asked["revision"] == "draft"

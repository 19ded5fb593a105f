"""Norms held at the whole model's scales, against plain torch."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import make_model
from test_auditing import CONFIG, circuit_of
from test_pruning import letters_task

from tl_sparse import site_map
from tl_sparse.ablation import zero_references
from tl_sparse.auditing.subject import Subject
from tl_sparse.auditing.sufficiency import loss_with_norms_of_the_whole, sufficiency
from tl_sparse.sites import joint_matrix

TASK = letters_task()
EPS = 1e-5


def plain_loss(model, kept: set[tuple[str, int]], batch, *, still: bool) -> float:
    """One MLP layer and an unembedding, both behind an RMS norm; nodes not kept are zero."""
    mlp = model.blocks[0].mlp

    def stream(only: bool, scales: list[torch.Tensor] | None) -> tuple[torch.Tensor, list]:
        used = []

        def norm(x: torch.Tensor) -> torch.Tensor:
            scale = (x.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
            used.append(scale if scales is None else scales[len(used)])
            return x / used[-1]

        def out(name: str, x: torch.Tensor) -> torch.Tensor:
            gate = torch.tensor([float((name, c) in kept) for c in range(x.shape[-1])])
            return x * gate if only else x

        x = model.W_E[batch.tokens]
        norm(x)  # of the attention, which writes nothing
        read = out("mlp_in", norm(x))
        neurons = out("mlp_neuron", torch.nn.functional.gelu(read @ mlp.W_in + mlp.b_in))
        x = x + out("mlp_out", neurons @ mlp.W_out + mlp.b_out)
        return norm(x) @ model.W_U + model.b_U, used

    _, scales = stream(False, None)
    logits, _ = stream(True, scales if still else None)
    rows = torch.arange(len(batch.last))
    last = logits[rows, batch.last]
    margins = last[rows, batch.correct] - last[rows, batch.wrong]
    return torch.nn.functional.softplus(-margins).mean().item()


@pytest.fixture(scope="module")
def model():
    model = make_model(None, n_layers=1, act_fn="gelu", use_attention_sinks=False, eps=EPS,
                       default_prepend_bos=False, positional_embedding_type="none")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.0 if ".attn." in name else 0.6
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


def test_norms_keep_the_scales_of_the_whole_model(model):
    sites = site_map(model)
    joint = next(j for j in sites.joints if j.target.name == "mlp_neuron")
    after = next(j for j in sites.joints if j.target.name == "mlp_out")
    edges = [
        (f"0.mlp_in.{a}", f"0.mlp_neuron.{b}", float(joint_matrix(model, joint)[a, b]))
        for a in range(8) for b in range(6)
    ] + [
        (f"0.mlp_neuron.{a}", f"0.mlp_out.{b}", float(joint_matrix(model, after)[a, b]))
        for a in range(6) for b in range(5)
    ]  # fmt: skip
    circuit = circuit_of(model, edges, TASK.name)
    subject = Subject(model, circuit, TASK, zero_references(model), CONFIG)
    n_all, n = TASK.n_examples("test"), min(32, TASK.n_examples("test"))
    batch = TASK.batch("test", [i * n_all // n for i in range(n)])
    kept = {(node.site.name, node.channel) for node in circuit.nodes}
    own, still = (plain_loss(model, kept, batch, still=s) for s in (False, True))
    assert abs(own - still) > 1e-3
    assert subject.alone == pytest.approx(own, rel=1e-4)
    assert loss_with_norms_of_the_whole(subject) == pytest.approx(still, rel=1e-4)
    names = [one.name for one in sufficiency(subject, {"zero": zero_references(model)})]
    assert "gain kept under its own ablation, with the norms' scales of the whole model" in names
    assert "gain kept under zero, with the norms' scales of the whole model" in names
    alone = Subject(model, circuit, TASK, zero_references(model), replace(CONFIG, n_examples=1))
    assert all(math.isfinite(one.threshold) for one in sufficiency(alone, {}))

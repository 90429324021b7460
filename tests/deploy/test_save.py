"""What ``save`` writes, ``load`` makes again: the same outputs, bit for bit, in both modes and at other sizes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from support.networks import DemoNet
from support.saved import assert_same, compact, saved
from support.vision import build, torchvision_models
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_map_only

import fx_oto

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def larger(inputs):
    return tree_map_only(torch.Tensor, lambda t: torch.cat([t, t, t]), inputs)


class Buffer(nn.Module):
    """A buffer that is cut by the length of the input, and is in no state dict."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("places", torch.arange(32)[None], persistent=False)
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        places = self.places[:, : x.shape[1]].expand(x.shape[0], -1)[..., None].float()
        return self.last(torch.relu(self.first(x))).masked_fill(~self.mask, 0.0) * self.scale + places


class Modes(nn.Module):
    """Code that differs by the training mode, also in what it writes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        if self.training:
            x = x + torch.randn_like(x)
        x = self.last(F.dropout(x, 0.3, self.training))
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.mean


class Tied(nn.Module):
    """One weight under two names, one module at two places, and a parameter that never learns."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.hidden = nn.ModuleDict({"in": nn.Linear(16, 16), "a-b": nn.Linear(16, 16)})
        self.hidden["again"] = self.hidden["in"]
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.words.weight
        self.shift = nn.Parameter(torch.randn(16), requires_grad=False)

    def forward(self, ids):
        x = self.words(ids) + self.shift
        for name in ("in", "a-b", "again"):
            x = torch.relu(self.hidden[name](x))
        return self.head(x)


class Outputs(nn.Module):
    """Everything that a graph returns as it is."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x, scale=float("inf"), *rest, flag=True, **more):
        x = self.last(torch.relu(self.first(x)))
        top = x.topk(2)
        parts = {"values": top.values, 3: (top.indices, x.shape, x.dtype), (1, None): [x.mean(), 1 - 2j, ...]}
        return parts, slice(None, 2), x[..., -1:], scale, flag


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(16, 4, batch_first=True), nn.LayerNorm(16)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.norm(self.first(x))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.last(x)


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.first, self.cells = nn.Linear(8, 16), kind(16, 12, batch_first=True, **options)
        self.last = nn.Linear(24 if options.get("bidirectional") else 12, 4)

    def forward(self, x):
        return self.last(self.cells(torch.relu(self.first(x)))[0])


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x):
        x = self.last(torch.relu(self.first(x)))
        return torch.view_as_real(x * self.turn.conj())


class Asking(nn.Module):
    """It turns types, and asks whether a ratio of sizes is whole."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        half = x.size(-1) / 2
        x = torch.relu(self.first(x)).type(torch.float64).type("torch.FloatTensor")
        return self.last(torch.as_tensor(x)) * (2.0 if half.is_integer() else 1.0)


def mlp(*between, width=16):
    return nn.Sequential(nn.Linear(8, width), *between, nn.Linear(width, 4))


NETWORKS = {
    "resnet18": lambda: (build("resnet18"), IMAGES),
    "mobilenet_v3_small": lambda: (build("mobilenet_v3_small"), IMAGES),
    "the paper's demonstration": lambda: (DemoNet(width=8), IMAGES),
    "buffers and scalars": lambda: (Buffer(), TOKENS),
    "two modes": lambda: (Modes(), ROWS),
    "tied": lambda: (Tied(), torch.arange(6).reshape(2, 3)),
    "outputs": lambda: (Outputs(), ROWS),
    "attention": lambda: (Attention(), TOKENS),
    "transformer layer": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 4)),
        TOKENS,
    ),
    "lstm": lambda: (Recurrent(), TOKENS),
    "bidirectional gru": lambda: (Recurrent(nn.GRU, bidirectional=True, num_layers=2, dropout=0.2), TOKENS),
    "weight_norm": lambda: (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4)),
        ROWS,
    ),
    "spectral_norm": lambda: (
        nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4)),
        ROWS,
    ),
    "orthogonal": lambda: (
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), parametrizations.orthogonal(nn.Linear(4, 4))),
        ROWS,
    ),
    "norms": lambda: (mlp(nn.LayerNorm(16), nn.GELU(), nn.RMSNorm(16), nn.Dropout(0.2)), ROWS),
    "group norm": lambda: (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.ReLU(), nn.Conv2d(16, 4, 1)),
        IMAGES,
    ),
    "channels_last": lambda: (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1)).to(
            memory_format=torch.channels_last
        ),
        IMAGES,
    ),
    "bfloat16": lambda: (mlp(nn.SiLU()).bfloat16(), ROWS.bfloat16()),
    "float64": lambda: (mlp(nn.PReLU(16)).double(), ROWS.double()),
    "complex": lambda: (Complex(), ROWS),
    "asking": lambda: (Asking(), ROWS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_the_same_to_the_last_bit(name, tmp_path):
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    small = compact(model, inputs)
    loaded = saved(small, tmp_path)
    assert_same(small, loaded, inputs, larger(inputs))
    assert loaded.code.split("def forward")[1] == small.code.split("def forward")[1]  # before it are marks for tracing


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_t", "shufflenet_v2_x0_5", "densenet121", "convnext_tiny", "vit_b_16"])
def test_torchvisions_networks(name, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 224 if name == "vit_b_16" else 64, 224 if name == "vit_b_16" else 64)
    small = compact(build(name), images)
    assert_same(small, saved(small, tmp_path), images, larger(images))


def test_timms_vision_transformer(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 10}
    small = compact(timm.models.vision_transformer.VisionTransformer(**size), IMAGES)
    assert_same(small, saved(small, tmp_path), IMAGES, larger(IMAGES))


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"vocab_size": 64, "max_position_embeddings": 32}
HUGGING_FACE = {
    "Bert": ("BertConfig", "BertForSequenceClassification", SIZES),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", SIZES | {"num_key_value_heads": 2, "use_cache": False}),
    "GPT2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
}


def hugging_face(name):
    torchvision_models()  # transformers looks for torchvision, of which only the Python part may be there
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config, kind, sizes = HUGGING_FACE[name]
    torch.manual_seed(0)
    return getattr(transformers, kind)(getattr(transformers, config)(**sizes))


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_faces_networks(name, tmp_path):
    model = hugging_face(name)
    ids = torch.randint(0, 64, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    small = compact(model, inputs)
    plain, typed = saved(small, tmp_path), saved(small, tmp_path, model)
    assert type(plain(**inputs)) is dict  # without the model, its classes are not looked for
    assert type(typed(**inputs)) is type(model(**inputs))
    for loaded in (plain, typed):
        assert_same(small, loaded, inputs, larger(inputs))


IN_A_FRESH_PROCESS = """
import sys, torch, fx_oto
model = fx_oto.load(sys.argv[1])
inputs, wanted = torch.load(sys.argv[2])
model.eval()
assert all(torch.equal(a, b) for a, b in zip((model(*inputs),), (wanted,)))
assert not [name for name in sys.modules if name.split(".")[0] in ("support", "torchvision", "timm", "transformers")]
"""


@pytest.mark.parametrize("name", ["resnet18", "attention", "weight_norm"])
def test_in_a_fresh_process_without_the_users_code(name, tmp_path):
    model, inputs = NETWORKS[name]()
    small = compact(model, inputs).eval()
    fx_oto.save(small, tmp_path / "small.safetensors")
    torch.save(((inputs,), small(inputs).detach()), tmp_path / "wanted.pt")
    program = [sys.executable, "-c", IN_A_FRESH_PROCESS, tmp_path / "small.safetensors", tmp_path / "wanted.pt"]
    subprocess.run(program, check=True, timeout=300)


def test_what_was_one_is_one(tmp_path):
    loaded = saved(compact(Tied(), torch.arange(6).reshape(2, 3)), tmp_path)
    assert loaded.head.weight is loaded.words.weight
    assert [name for name, _ in loaded.named_modules() if name.startswith("hidden.")] == ["hidden.in", "hidden.a-b"]
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        assert sum("words" in name or "head" in name for name in list(file.keys())) == 1


def test_it_trains_on_alike(tmp_path):
    small = compact(Modes(), ROWS)
    loaded = saved(small, tmp_path)
    for model in (small, loaded):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            model(ROWS).square().mean().backward()
            optimizer.step()
    assert_same(small, loaded, ROWS)


def test_it_is_loaded_onto_a_device(tmp_path):
    class Ranges(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.last(torch.relu(self.first(x))) + torch.arange(4, device=x.device)

    loaded = saved(compact(Ranges(), ROWS), tmp_path, device="meta")
    assert {tensor.device.type for tensor in loaded.parameters()} == {"meta"}
    assert loaded(ROWS.to("meta")).device.type == "meta"


def test_large_example_inputs_take_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("fx_oto.deploy.about._MOST", 15)
    given = fx_oto.Context.of(saved(compact(mlp(nn.ReLU()), ROWS), tmp_path)).inputs.args[0]
    assert (given.shape, given.untyped_storage().nbytes()) == (ROWS.shape, 4)


def test_modes_are_those_it_was_saved_in(tmp_path):
    for training in (True, False):
        small = compact(Outputs(), ROWS).train(training)
        small.get_submodule("first").train()
        loaded = saved(small, tmp_path)
        assert [one.training for one in loaded.modules()] == [one.training for one in small.modules()]


def test_report_and_notes_are_kept(tmp_path):
    gm = fx_oto.prepare(mlp(nn.ReLU()), ROWS)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=10)
    for _ in range(10):
        loss = gm(ROWS).square().mean()
        loss.backward()
        optimizer.note_loss(loss)
        optimizer.step()
    small = fx_oto.compress(gm)
    loaded = saved(small, tmp_path)
    assert fx_oto.report(loaded).to_dict() == fx_oto.report(small).to_dict()
    assert str(fx_oto.Context.of(loaded).capture) == str(fx_oto.Context.of(small).capture)
    assert fx_oto.Context.of(loaded).get(fx_oto.VerificationReport).error < 1e-5
    given = fx_oto.Context.of(loaded).inputs.args[0]
    assert given.shape == ROWS.shape
    assert not given.any()  # the user's numbers are in no file
    assert fx_oto.cost(loaded, ROWS).params == fx_oto.cost(small, ROWS).params


def test_rounds_compose_and_kept_indices_are_those_of_the_first_model(tmp_path):
    torch.manual_seed(0)
    model = mlp(nn.ReLU())
    whole = copy.deepcopy(model).state_dict()
    first = fx_oto.prepare(model, ROWS)
    fx_oto.partition(first).zero_zigs_(0, torch.tensor([0, 3, 5, 9]))
    loaded = saved(fx_oto.compress(first), tmp_path)
    again = fx_oto.prepare(loaded, ROWS)
    fx_oto.partition(again).zero_zigs_(0, torch.tensor([0, 1, 11]))
    twice = saved(fx_oto.compress(again), tmp_path)
    kept, size = fx_oto.Context.of(twice).kept["0.weight", 0]
    assert size == 16
    assert kept.tolist() == [4, 6, 7, 8, 10, 11, 12, 13, 14]
    assert torch.equal(twice.get_parameter("0.weight"), whole["0.weight"][kept])
    assert torch.equal(twice.get_parameter("2.weight"), whole["2.weight"][:, kept])


def test_a_trace_that_was_never_cut_is_written_as_well(tmp_path):
    gm = fx_oto.trace(mlp(nn.ReLU()), ROWS)
    assert_same(gm, saved(gm, tmp_path), ROWS)


def test_a_graph_of_the_users_own_is_written(tmp_path):
    gm = torch.fx.symbolic_trace(mlp(nn.ReLU()))
    assert_same(gm, saved(gm, tmp_path), ROWS)


def test_the_file_is_an_ordinary_safetensors_file(tmp_path):
    small = compact(mlp(nn.ReLU()), ROWS)
    fx_oto.save(small, tmp_path / "small.safetensors")
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        assert {name: file.get_tensor(name).shape for name in list(file.keys())} == {
            name: tensor.shape for name, tensor in small.state_dict().items()
        }
        plan = json.loads(file.metadata()["fx_oto"])
    assert plan["format"] == 1
    assert plan["versions"] == {"fx_oto": fx_oto.__version__, "torch": torch.__version__}
    assert [node["op"] for node in plan["graph"]] == ["placeholder", *["call_module"] * 3, "output"]
    assert str(tmp_path) not in json.dumps(plan)


class Laid(nn.Module):
    """Spells layouts out, as packing sequences does inside of torch."""

    def __init__(self):
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(4, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x, lengths):
        h = self.first(x).contiguous(memory_format=torch.contiguous_format)
        h = h + torch.zeros_like(h, memory_format=torch.preserve_format) + torch.zeros(8, layout=torch.strided)
        packed = nn.utils.rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        return self.last(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_layouts_in_a_graph_are_pickled(protocol, tmp_path):
    inputs = torch.randn(3, 6, 4), torch.tensor([6, 4, 3])
    model = Laid()
    gm = fx_oto.prepare(model, inputs)
    fx_oto.partition(gm).zero_(0.5)
    for graph in (gm, fx_oto.compress(gm)):
        torch.save(graph, tmp_path / "graph.pt", pickle_protocol=protocol)
        assert torch.equal(torch.load(tmp_path / "graph.pt", weights_only=False)(*inputs), graph(*inputs))

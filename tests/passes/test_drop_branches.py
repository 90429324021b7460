"""Branches of which every ZIG is zero leave the compact model, which computes what the group-sparse one does."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from support.exactness import Comparison, calibrate, randomise
from support.seen import never_drop
from support.sizes import rebatched, resized
from support.vision import torchvision_models, without_compiled_library
from torch import nn

import fx_oto
from fx_oto.core.context import ExampleInputs


def prepared(model, inputs, *gone, fraction=0.3, random=False):
    """A prepared model with random numbers, and a part of every family zero; of those that match, all."""
    torch.manual_seed(0)
    model = randomise(model) if random else never_drop(randomise(model))
    given = ExampleInputs.of(inputs)
    calibrate(model, given.args, given.kwargs)
    gm = fx_oto.prepare(model, given)
    zigs = fx_oto.partition(gm).zero_(fraction, torch.Generator().manual_seed(1))
    found = [i for i, family in enumerate(zigs.families) if any(map(family.matches, gone))]
    assert len(found) >= len(gone)
    for i in found:
        zigs.zero_zigs_(i, torch.arange(len(zigs.families[i])))
    return model, gm, [zigs.families[i].name for i in found]


def dropped(model, inputs, *gone, tolerance=1e-10, **options):
    """Compress, compare at several batch sizes in both modes, and check what is counted; returns the compact model."""
    model, gm, families = prepared(model, inputs, *gone, **options)
    small = fx_oto.compress(gm)
    found = Comparison(model, gm, small, tolerance, 3)
    given = ExampleInputs.of(inputs)
    for sized in (resized(given, {}), rebatched(given, 2), rebatched(given, 5)):
        found.compare(sized, masked=True)
    assert list(fx_oto.Context.of(small).get(fx_oto.DroppedBranches).families) == families
    zigs, cost = fx_oto.partition(gm), fx_oto.cost(small, given)
    assert zigs.params.left(zigs.removed()) == cost.params
    record = next(one for one in fx_oto.report(small).records if one.name == "drop-branches")
    assert record.macs[1] == cost.macs
    assert abs(zigs.macs.left(zigs.removed()) - cost.macs) <= 1e-3 * cost.macs  # thin products are counted by parts
    assert record.params[1] < record.params[0]
    return small


IMAGE = torch.randn(3, 3, 64, 64, dtype=torch.float64)


def vision(name, *gone, **options):
    without_compiled_library()
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=5, **options).double(), gone


def resnet(block, layers, *gone):
    models = torchvision_models()
    return models.resnet.ResNet(getattr(models.resnet, block), layers, num_classes=5).double(), gone


def torchs_vit():
    model = torchvision_models().VisionTransformer(64, 16, 3, 3, 48, 96, num_classes=5).double()
    return model, ("*.encoder_layer_0.self_attention.in_proj_weight", "*.encoder_layer_1.mlp.0.weight")


NETWORKS = {
    "ResNet": lambda: resnet("BasicBlock", [2, 2, 1, 1], "layer1.1.conv1", "layer2.0.conv1", "layer2.1.conv1"),
    "Bottleneck": lambda: resnet("Bottleneck", [2, 1, 1, 2], "layer1.1.conv2", "layer2.0.conv2", "layer4.1.conv2"),
    "ViT": lambda: vision(
        "vit_tiny_patch16_224",
        *("blocks.0.attn.qkv", "blocks.1.mlp.fc1", "blocks.2.attn.qkv", "blocks.2.mlp.fc1"),
        img_size=64,
        depth=3,
        drop_path_rate=0.2,
        proj_drop_rate=0.1,
        init_values=0.1,
    ),
    "ViT of torchvision": torchs_vit,
    "ConvNeXt": lambda: vision("test_convnext", "stages.0.blocks.0.mlp.fc1", "stages.2.blocks.1.mlp.fc1"),
    "MobileNetV3": lambda: vision("mobilenetv3_small_100", "blocks.1.1.conv_pw", "blocks.2.1.conv_pw", "blocks.2.2.se"),
    "Swin": lambda: vision(
        "swin_tiny_patch4_window7_224",
        *("layers.0.blocks.1.mlp.fc1", "layers.1.blocks.0.attn.qkv", "layers.1.blocks.1.mlp.fc1"),
        img_size=64,
        window_size=4,
        depths=(2, 2),
        num_heads=(2, 4),
        embed_dim=24,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    model, gone = NETWORKS[name]()
    dropped(model, IMAGE, *gone)


def transformers_():
    without_compiled_library()
    return pytest.importorskip("transformers")


def language(kind, **options):
    transformers = transformers_()
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    return getattr(transformers, f"{kind}Config")(**sizes, num_attention_heads=4, **options)


def test_llama():
    transformers = transformers_()
    config = language("Llama", num_key_value_heads=2)
    gone = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj")
    gone += ("model.layers.2.self_attn.q_proj", "model.layers.2.mlp.gate_proj")
    inputs = {"input_ids": torch.randint(0, 40, (3, 7)), "use_cache": False}
    small = dropped(transformers.LlamaForCausalLM(config), inputs, *gone, tolerance=1e-5)
    assert not any(name.startswith("model.layers.2.") for name, _ in small.named_parameters())


def test_bert():
    transformers = transformers_()
    config = language("Bert")
    gone = ("encoder.layer.0.attention.self.query", "encoder.layer.1.intermediate.dense")
    model = transformers.BertModel(config).double()
    small = dropped(model, {"input_ids": torch.randint(0, 40, (3, 7))}, *gone)
    left = {name for name, _ in small.named_parameters() if name.startswith("encoder.layer.1.")}
    assert "encoder.layer.1.output.dense.bias" in left
    assert "encoder.layer.1.output.dense.weight" not in left


class Net(nn.Module):
    """A residual network: what its branch is, each case says."""

    def __init__(self, branch, layers, dims=2, last=None):
        super().__init__()
        first, end = {0: (nn.Linear(4, 6), nn.Linear(6, 3)), 2: (nn.Conv2d(4, 6, 3), nn.Conv2d(6, 3, 1))}[dims]
        self.first, self.end, self.f = first, end, nn.ModuleDict(layers)
        self.gamma = nn.Parameter(torch.ones(6))
        self.branch, self.last = branch, last or (lambda x, y: x + y)

    def forward(self, x):
        x = self.first(x).tanh()
        return self.end(self.last(x, self.branch(self, x)))


def pair(bias=True):
    return {"up": nn.Linear(6, 8), "down": nn.Linear(8, 6, bias=bias)}


def convs(bias=True, **kinds):
    return {"up": nn.Conv2d(6, 8, 1), "down": nn.Conv2d(8, 6, 3, padding=1, bias=bias), **kinds}


def transposed():
    return {"up": nn.Conv2d(6, 8, 3), "down": nn.ConvTranspose2d(8, 6, 3)}


def deep():
    """The second of three is gone: what the third makes of it is constant, through a norm and an activation."""
    return {"in": nn.Conv2d(6, 5, 1), "up": nn.Conv2d(5, 8, 3, padding=1), "down": nn.Conv2d(8, 7, 1)} | {
        "norm": nn.BatchNorm2d(7),
        "out": nn.Conv2d(7, 6, 1),
    }


def by_addmm(net, x):
    return torch.addmm(net.f["down"].bias, net.f["up"](x).relu(), net.f["down"].weight.t())


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def of_tokens(y, like):
    return y.transpose(1, 2).reshape(like.shape)


def plain(net, x):
    return net.f["down"](net.f["up"](x).relu())


def drop_path(y, training):
    if not training:
        return y
    keep = y.new_empty((y.shape[0],) + (1,) * (y.dim() - 1)).bernoulli_(0.6)
    return y * keep.div_(0.6)


BRANCHES = {
    "linear": (plain, pair, 0),
    "linear without bias": (plain, lambda: pair(bias=False), 0),
    "F.linear": (lambda n, x: F.linear(n.f["up"](x).relu(), n.f["down"].weight, n.f["down"].bias), pair, 0),
    "matmul": (lambda n, x: n.f["up"](x).relu() @ n.f["down"].weight.t(), pair, 0),
    "addmm": (by_addmm, pair, 0),
    "einsum": (lambda n, x: torch.einsum("ni,oi->no", n.f["up"](x).relu(), n.f["down"].weight), pair, 0),
    "scaled": (lambda n, x: plain(n, x) * n.gamma, pair, 0),
    "gated unit": (
        lambda n, x: n.f["down"](F.silu(n.f["up"](x)) * n.f["gate"](x)),
        lambda: pair() | {"gate": nn.Linear(6, 8)},
        0,
    ),
    "layer norm after": (lambda n, x: n.f["norm"](plain(n, x)), lambda: pair(False) | {"norm": nn.LayerNorm(6)}, 0),
    "layer norm of a bias": (lambda n, x: n.f["norm"](plain(n, x)), lambda: pair() | {"norm": nn.LayerNorm(6)}, 0),
    "RMS norm after": (lambda n, x: n.f["norm"](plain(n, x)), lambda: pair(False) | {"norm": nn.RMSNorm(6)}, 0),
    "batch norm 1-D": (lambda n, x: n.f["norm"](plain(n, x)), lambda: pair() | {"norm": nn.BatchNorm1d(6)}, 0),
    "activation of a bias": (lambda n, x: torch.sigmoid(plain(n, x)), pair, 0),
    "convolutions": (plain, convs, 2),
    "F.conv2d": (
        lambda n, x: F.conv2d(n.f["up"](x).relu(), n.f["down"].weight, n.f["down"].bias, padding=1),
        convs,
        2,
    ),
    "batch norm": (lambda n, x: n.f["norm"](plain(n, x)), lambda: convs(False, norm=nn.BatchNorm2d(6)), 2),
    "batch norm of a bias": (lambda n, x: n.f["norm"](plain(n, x)), lambda: convs(norm=nn.BatchNorm2d(6)), 2),
    "batch norm with the mean of all batches": (
        lambda n, x: n.f["norm"](plain(n, x)),
        lambda: convs(norm=nn.BatchNorm2d(6, momentum=None)),
        2,
    ),
    "transposed convolution": (plain, transposed, 2),
    "grouped convolution": (
        lambda n, x: n.f["down"](n.f["mid"](n.f["up"](x)).relu()),
        lambda: convs(mid=nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        2,
    ),
    "the second of three": (
        lambda n, x: n.f["out"](n.f["norm"](n.f["down"](n.f["up"](n.f["in"](x)).relu())).relu()),
        deep,
        2,
    ),
    "over tokens": (
        lambda n, x: of_tokens(n.f["down"](n.f["up"](tokens(x)).relu()), x),
        pair,
        2,
    ),
    "channels last": (
        lambda n, x: plain(n, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * n.gamma.view(-1, 1, 1),
        pair,
        2,
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches(name):
    branch, layers, dims = BRANCHES[name]
    x = torch.randn(3, 4, dtype=torch.float64) if dims == 0 else torch.randn(3, 4, 7, 6, dtype=torch.float64)
    small = dropped(Net(branch, layers(), dims).double(), x, "f.up")
    assert not [name for name, _ in small.named_modules() if name.startswith("f.up")]
    assert "f.down.weight" not in dict(small.named_parameters()) or name == "the second of three"


JOINED = {
    "x + y": lambda x, y: x + y,
    "y + x": lambda x, y: y + x,
    "torch.add with alpha": lambda x, y: torch.add(x, y, alpha=2),
    "y.add_(x)": lambda x, y: y.add_(x),
    "y += x": lambda x, y: y.__iadd__(x),
    "x.add_(y)": lambda x, y: x.add_(y),
    "x - y": lambda x, y: x - y,
    "y - x": lambda x, y: y - x,
    "then in place": lambda x, y: (x + y).relu_(),
    "x again after in place": lambda x, y: (x + y).mul_(2) + x,
    "twice": lambda x, y: (x + y) * (x - 2 * y),
    "a gate": lambda x, y: x * torch.sigmoid(y),
    "a quotient": lambda x, y: x / (2 + y.tanh()),
    "the other way round": lambda x, y: x + 3 / (1 + y * y) - (1 - y),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", JOINED)
def test_how_a_branch_is_joined(name, bias):
    x = torch.randn(3, 4, dtype=torch.float64)
    net = Net(plain, pair(bias), 0, JOINED[name]).double()
    _, gm, _ = prepared(net, x, "f.up")
    small = fx_oto.compress(gm)
    for batch in (x, torch.randn(5, 4, dtype=torch.float64)):
        torch.testing.assert_close(small(batch), net(batch), rtol=1e-12, atol=1e-12)
    gone = "f.up.weight" not in dict(small.named_parameters())
    assert gone or (not bias and name in ("y - x", "a gate", "a quotient", "twice", "the other way round"))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["dropout", "functional dropout", "stochastic depth", "both", "functional, twice"])
def test_what_is_drawn_for_a_bias_is_drawn_as_before(kind, bias):
    def branch(net, x):
        y = plain(net, x)
        if "functional" in kind:
            y = F.dropout(y, 0.5, net.training)
        elif kind != "stochastic depth":
            y = net.f["drop"](y)
        return drop_path(y, net.training) if kind in ("both", "stochastic depth") else y

    def twice(x, y):
        return x.sin() + F.dropout(y, 0.5, net.training) + y

    x = torch.randn(5, 9, 4, dtype=torch.float64)
    net = Net(branch, pair(bias) | {"drop": nn.Dropout(0.5)}, 0, twice if "twice" in kind else None).double()
    _, gm, _ = prepared(net, x, "f.up", fraction=0.0, random=True)
    small = fx_oto.compress(gm)
    assert "f.up.weight" not in dict(small.named_parameters())
    for training in (False, True):
        results = []
        for model in (net.train(training), small.train(training)):
            torch.manual_seed(3)
            results.append(model(x))
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_what_was_given_and_what_is_returned_share_no_memory():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.head = nn.Linear(4, 8), nn.Linear(8, 4, bias=False), nn.Linear(4, 2)

        def forward(self, x):
            y = x + self.down(self.up(x).relu())
            return y, self.head(x)

    x = torch.randn(3, 4)
    model, gm, _ = prepared(Pair(), x, "up")
    small = fx_oto.compress(gm)
    returned, _ = small(x)
    torch.testing.assert_close(returned, model(x)[0])
    returned.add_(1)
    torch.testing.assert_close(small(x)[0], model(x)[0])


def test_what_would_be_cut_in_two_is_refused():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    _, gm, _ = prepared(net, torch.randn(3, 4), "0")
    with pytest.raises(fx_oto.SlicingError, match=r"family '0.weight' are zero, so the network would be cut in two"):
        fx_oto.compress(gm)


def test_two_branches_that_are_all_there_is():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))

        def forward(self, x):
            return self.a(x) + self.b(x)

    x = torch.randn(3, 4, dtype=torch.float64)
    small = dropped(Both().double(), x, "a.0")
    assert sorted(small.state_dict()) == ["a.2.bias", "b.0.bias", "b.0.weight", "b.2.bias", "b.2.weight"]
    _, gm, _ = prepared(Both().double(), x, "a.0", "b.0")
    with pytest.raises(fx_oto.SlicingError, match=r"families 'a.0.weight', 'b.0.weight' are zero"):
        fx_oto.compress(gm)


@pytest.mark.parametrize("name", ["softmax", "matmul"])
def test_what_is_read_at_its_size_stays(name):
    """A product of square matrices is of the same size as either, and no sum."""
    last = {"softmax": lambda x, y: x + F.softmax(y, -1), "matmul": lambda x, y: x @ y}[name]
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    model, gm, _ = prepared(Net(plain, pair(), 0, last).double(), x, "f.up", fraction=0.0)
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small(x), model(x))
    assert small.get_submodule("f.up").out_features == 1
    assert fx_oto.partition(gm).depth.may_go(range(len(fx_oto.partition(gm).families))) == frozenset()


def by_two_in_turn(n, x, y):
    first, second = n.f["other"](x), n.f["other"](x.sin())
    made = n.f["out"](y).relu()
    return (second + y) * (first + made)


READ = {
    "further down": lambda n, x, y: n.f["other"](x).relu() + n.f["out"](y),
    "and as it is": lambda n, x, y: n.f["other"](x).tanh() + n.f["out"](y) + y,
    "and at its size": lambda n, x, y: x + F.softmax(y, -1) + n.f["out"](y),
    "in turn": by_two_in_turn,
}


@pytest.mark.parametrize("name", READ)
def test_what_is_left_of_a_branch_is_read_by_layers(name):
    """Of its bias, one row for all examples, another layer makes one row."""
    net = Net(plain, pair() | {"out": nn.Linear(6, 6), "other": nn.Linear(6, 6)}, 0).double()
    net.last = lambda x, y: READ[name](net, x, y)
    model, gm, _ = prepared(net, x := torch.randn(3, 4, dtype=torch.float64), "f.up")
    small = fx_oto.compress(gm)
    found, given, rows = Comparison(model, gm, small, 1e-10, 3), ExampleInputs.of(x), []
    small.get_submodule("f.out").register_forward_hook(lambda module, read, made: rows.append(len(made)))
    for sized in (resized(given, {}), rebatched(given, 5)):
        found.compare(sized, masked=True)
    assert set(rows) == {1}


class Lumber(nn.Module):
    """Computes what it does not return, checks it, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unread = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 16)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        h = self.a(x).relu()
        self.unread(h).softmax(-1)
        self.calls.add_(1)
        torch._assert(x.ndim == 2, "two dimensions")
        return self.b(h)


def test_dead_weight_leaves():
    model, gm, _ = prepared(Lumber().double(), x := torch.randn(3, 4, dtype=torch.float64))
    small = fx_oto.compress(gm)
    assert sorted(small.state_dict()) == ["a.bias", "a.weight", "b.bias", "b.weight", "calls"]
    before = float(small.calls)
    torch.testing.assert_close(small(x), model(x))
    assert float(small.calls) == before + 1
    zigs = fx_oto.partition(gm)
    assert zigs.params.left(zigs.removed()) == sum(p.numel() for p in small.parameters())
    assert fx_oto.cost(small, x).macs == zigs.macs.left(zigs.removed())


def test_a_norm_that_is_called_twice_sees_what_it_saw():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x)
            self.norm(h.exp())
            return self.b(self.norm(h).relu())

    model, gm, _ = prepared(Twice().double(), x := torch.randn(5, 4, dtype=torch.float64))
    small = fx_oto.compress(gm).train()
    torch.testing.assert_close(small(x), model.train()(x))
    assert int(small.norm.num_batches_tracked) == int(model.norm.num_batches_tracked)
    torch.testing.assert_close(small.eval()(x), model.eval()(x))


def test_nothing_is_dropped_where_all_is_needed():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    _, gm, _ = prepared(net, torch.randn(3, 4))
    small = fx_oto.compress(gm)
    assert [record.name for record in fx_oto.report(small).records[3:]] == ["physical-slicing", "verification"]
    assert not fx_oto.DropBranches()(small).modified


def test_saved_loaded_written_back_and_pruned_again(tmp_path):
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    branch, layers, dims = BRANCHES["batch norm of a bias"]
    model, gm, _ = prepared(Net(branch, layers(), dims).double(), x, "f.up")
    small = fx_oto.compress(gm)
    with pytest.warns(fx_oto.FxOtoWarning, match="forward did not use these parameters on the example inputs: 'gamma'"):
        written = fx_oto.compress(gm, into=model)
    fx_oto.save(small, tmp_path / "small.safetensors")
    torch.save(small, buffer := io.BytesIO())
    buffer.seek(0)
    others = [written, fx_oto.load(tmp_path / "small.safetensors"), torch.load(buffer, weights_only=False)]
    again = fx_oto.prepare(small, x)
    for other in others:
        for training in (False, True):
            results = [copy.deepcopy(one).train(training)(x) for one in (other, small)]
            torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert type(written) is Net
    assert written.state_dict().keys() == small.state_dict().keys() | {"gamma"}  # which the branch does not read
    assert isinstance(written.f["up"], nn.Conv2d)
    smaller = fx_oto.compress(fx_oto.partition(again).zero_(0.5).module)
    torch.testing.assert_close(smaller.eval()(x), again.eval()(x), rtol=1e-10, atol=1e-10)


class Tanh(nn.Module):
    """Called like one of torch's, and called as a whole, for it asks for values: what it adds differs by position."""

    def forward(self, x):
        return x + torch.arange(x.size(1), dtype=x.dtype)[:, None] * int((x == x).all().item())  # noqa: PLR0124


def test_a_users_module_is_not_known_by_the_name_of_its_class():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.last, self.head = nn.Linear(6, 8), nn.Linear(8, 6), Tanh(), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(x + self.last(self.down(self.up(x).relu())))

    model, x = Net().double(), torch.randn(2, 5, 6).double()
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_zigs_(0, torch.arange(8))
    small = fx_oto.compress(gm)
    assert small.get_submodule("down").in_features == 1
    for training in (True, False):
        torch.testing.assert_close(small.train(training)(x), model.train(training)(x), rtol=1e-10, atol=1e-12)


class Unread(nn.Module):
    """A layer whose result nobody reads, or only one of its calls."""

    def __init__(self, twice):
        super().__init__()
        self.first, self.again, self.last, self.twice = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3), twice

    def forward(self, x):
        x = F.relu(self.first(x))
        y = self.again(x)
        if self.twice:
            self.again(x + y)
        return self.last(y if self.twice else x)


@pytest.mark.parametrize("twice", [False, True])
def test_what_nobody_reads_goes_though_a_mask_follows_it(twice):
    x = torch.randn(2, 4, dtype=torch.float64)
    model, gm, _ = prepared(Unread(twice).double(), x)
    small, zigs = fx_oto.compress(gm), fx_oto.partition(gm)
    Comparison(model, gm, small, 1e-10, 3).compare(resized(ExampleInputs.of(x), {}), masked=True)
    cost = fx_oto.cost(small, x)
    assert (zigs.params.left(zigs.removed()), zigs.macs.left(zigs.removed())) == (cost.params, cost.macs)
    assert sum(node.target == "again" for node in small.graph.nodes) == twice

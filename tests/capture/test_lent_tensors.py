"""``torch.func``: layers over lent tensors, what ``vmap`` takes apart, and derivatives inside of ``forward``."""

import pytest
import torch
from support.exactness import compress_half
from torch import nn
from torch.func import functional_call, stack_module_state

import fx_oto

LAYERS = {
    "linear": lambda: nn.Linear(12, 12),
    "batch norm": lambda: nn.BatchNorm1d(12),
    "layer norm": lambda: nn.LayerNorm(12),
    "perceptron": lambda: nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12)),
    "attention": lambda: nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0),
}


class Lending(nn.Module):
    """Calls a layer over its own parameters, twice these, those of another layer, or what a small network makes."""

    def __init__(self, layer, lend):
        super().__init__()
        self.first, self.layer, self.other = nn.Linear(6, 12), LAYERS[layer](), LAYERS[layer]()
        self.scale, self.last, self.lend = nn.Linear(6, 1), nn.Linear(12, 3), lend

    def forward(self, x):
        h = torch.tanh(self.first(x))
        own = dict(self.layer.named_parameters())
        if self.lend == "twice":
            own = {name: 2 * value for name, value in own.items()}
        elif self.lend == "another's":
            own = dict(self.other.named_parameters())
        elif self.lend == "made":
            own = {name: value * self.scale(x).mean() for name, value in own.items()}
        return self.last(torch.tanh(functional_call(self.layer, own, (h,))))


@pytest.mark.parametrize("lend", ["own", "twice", "another's", "made"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_over_lent_parameters(layer, lend):
    found = compress_half(Lending(layer, lend), torch.randn(5, 6))
    assert found.params_left < 0.75
    names = {str(node.target) for node in found.small.graph.nodes if node.op == "call_module"}
    layers = [name for name in names if name.startswith("layer") and list(found.small.get_submodule(name).parameters())]
    assert bool(layers) == (lend == "own")


class Ensemble(nn.Module):
    """Members at once, by ``vmap`` over stacked parameters, or over those of modules."""

    def __init__(self, members=3, of_modules=False):
        super().__init__()
        self.of_modules = of_modules
        if of_modules:
            nets = [nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(members)]
            stacked, _ = stack_module_state(nets)
            self.net = [nets[0].to("meta")]
            self.names = list(stacked)
            self.stacked = nn.ParameterList(stacked.values())
        else:
            self.first = nn.Parameter(torch.randn(members, 8, 16))
            self.last = nn.Parameter(torch.randn(members, 16, 4))

    def forward(self, x):
        if self.of_modules:
            held = dict(zip(self.names, self.stacked, strict=True))
            each = torch.vmap(lambda own: functional_call(self.net[0], own, (x,)))(held)
        else:
            each = torch.vmap(lambda first, last: torch.relu(x @ first) @ last)(self.first, self.last)
        return each.sum(0)


@pytest.mark.parametrize("of_modules", [False, True])
def test_an_ensemble_by_vmap_takes_any_batch(of_modules):
    found = compress_half(Ensemble(of_modules=of_modules), torch.randn(4, 8), any_size=True)
    assert found.params_left < 0.6
    assert [str(size) for size in fx_oto.Context.of(found.gm).capture.sizes if size.fixed] == []


PROPERTIES = {
    "real": lambda row: (row.to(torch.complex128) * 2).real,
    "torch.real": lambda row: torch.real(row.to(torch.complex128) * 2),
    "mT": lambda row: (row[:, None] * 2).mT[0],
}


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("depth", [1, 2])
def test_properties_of_what_is_taken_apart(name, depth):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            each = torch.vmap(PROPERTIES[name])
            return self.last((each if depth == 1 else torch.vmap(each))(self.first(x)))

    found = compress_half(Rows(), torch.randn(3, 5, 8) if depth == 2 else torch.randn(3, 8))
    assert found.zigs == 16


SLOPES = {
    "grad": lambda height, x: torch.func.grad(lambda y: height(y).sum())(x),
    "grad and value": lambda height, x: torch.func.grad_and_value(lambda y: height(y).square().sum())(x),
    "vjp": lambda height, x: torch.func.vjp(height, x)[1](torch.ones(len(x), 4).to(x))[0],
}


@pytest.mark.parametrize("slope", SLOPES)
def test_derivatives_inside_of_forward(slope):
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return SLOPES[slope](lambda y: self.last(torch.tanh(self.first(y))), x)

    found = compress_half(Slope(), torch.randn(3, 8), any_size=True)
    assert found.params_left < 0.6


def test_layers_under_vmap_are_whole_rather_than_wrong():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return torch.vmap(lambda row: self.last(torch.relu(self.first(row))))(x)

    model, x = Rows(), torch.randn(4, 8)
    with pytest.warns(fx_oto.FxOtoWarning, match="squeeze_"):
        gm = fx_oto.prepare(model, x)
    for given in (x, torch.randn(7, 8)):
        torch.testing.assert_close(gm(given), model(given))


class Masked(nn.Module):
    """Of which other lengths cannot be tried by themselves: the longest one is a number in ``lengths``."""

    def __init__(self, each):
        super().__init__()
        self.first, self.last, self.each = nn.Linear(4, 8), nn.Linear(8, 2), each

    def forward(self, x, lengths):
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return self.last(torch.vmap(self.each)(self.first(x).relu() * mask[..., None]))


@pytest.mark.parametrize(
    "each",
    [
        lambda row: row.sum(0) / row.shape[0],
        lambda row: row.reshape(row.shape[0], -1),
        lambda row: row * (row.shape[0] - 1) ** 0.5,
    ],
)
def test_sizes_that_cannot_be_tried_are_refused_where_code_is_given_plain_ones(each):
    model = Masked(each).eval()
    gm = fx_oto.prepare(model, (torch.randn(2, 5, 4), torch.tensor([5, 3])))
    more = torch.randn(3, 5, 4), torch.tensor([2, 5, 4])
    assert torch.equal(gm(*more), model(*more))
    with pytest.raises(AssertionError, match="was 5"):
        gm(torch.randn(2, 7, 4), torch.tensor([7, 3]))

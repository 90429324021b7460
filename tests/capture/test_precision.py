"""A graph follows its model into another precision: types that code reads from tensors are read when it runs."""

from __future__ import annotations

import copy

import pytest
import torch
from support.saved import saved
from support.vision import without_compiled_library
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

import fx_oto
from fx_oto.capture import precision

ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("angles", torch.arange(16.0) / 7)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


class UpAndDown(Net):
    def between(self, x):
        return (x.float() * 2).softmax(-1).to(x.dtype)


class ByKeyword(Net):
    def between(self, x):
        return torch.sigmoid(x.to(dtype=torch.float32)).to(dtype=self.b.weight.dtype)


class ByParameters(Net):
    def between(self, x):
        return (x.to(torch.float32) ** 2).to(next(self.parameters()).dtype)


class Made(Net):
    def between(self, x):
        ones = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
        return x * ones + torch.zeros(x.shape, dtype=x.dtype) + torch.full((1,), 0.5).to(x.dtype)


class Masks(Net):
    def between(self, x):
        mask = torch.zeros_like(self.angles, dtype=x.dtype).masked_fill(self.angles > 1, torch.finfo(x.dtype).min)
        return functional.softmax(x + mask, dim=-1, dtype=torch.float32).to(x.dtype) + torch.finfo(x.dtype).eps


class Rotates(Net):
    def between(self, x):
        angles = self.angles.float()[None, : x.shape[-1]]
        return x * angles.cos().to(dtype=x.dtype) + x * angles.sin().to(dtype=x.dtype)


class ByMode(Net):
    def between(self, x):
        scale = 2 if self.training else 1
        return (x.float() * scale).exp().to(x.dtype)


class Slices(Net):
    def between(self, x):
        return torch.cat([x[:, :8].float(), x[:, 8:].float()], -1).to(x.dtype)


NETWORKS = [UpAndDown, ByKeyword, ByParameters, Made, Masks, Rotates, ByMode, Slices]


def halved(model, x):
    gm = fx_oto.prepare(model, x)
    if fx_oto.partition(gm).families:
        fx_oto.partition(gm).zero_(0.5)
        return gm, fx_oto.compress(gm)
    return gm, gm


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("before", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("after", [torch.bfloat16, torch.float16, torch.float64, torch.float32])
def test_graphs_are_cast_as_the_model_is(kind, before, after):
    torch.manual_seed(0)
    model = kind().to(before)
    gm, small = halved(model, ROWS.to(before))
    for training in (False, True):
        x = torch.cat([ROWS, ROWS]).to(after)
        expected = copy.deepcopy(model).to(after).train(training)(x)
        for graph in (gm, small):
            found = copy.deepcopy(graph).to(after).train(training)(x)
            assert found.dtype == expected.dtype == after
            tolerance = max({torch.bfloat16: 3e-2, torch.float16: 4e-3}.get(one, 1e-5) for one in (before, after))
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_a_type_that_code_spells_stays():
    gm = fx_oto.prepare(UpAndDown(), ROWS)
    doubled = copy.deepcopy(gm).double()
    kinds = {node.name: value.dtype for node, value in run(doubled, ROWS.double()) if isinstance(value, torch.Tensor)}
    assert {kind for name, kind in kinds.items() if "softmax" in name} == {torch.float32}
    assert kinds["output"] == torch.float64


def run(gm, x):
    """Each node with what it returns."""
    found = []

    class Noting(torch.fx.Interpreter):
        def run_node(self, n):
            found.append((n, super().run_node(n)))
            return found[-1][1]

    Noting(gm).run(x)
    return found


class Spectral(nn.Module):
    """Computes with a spectrum; what is handed is given the model, what it is of, and the spectrum."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(8, 16), nn.Linear(16, 4), between
        self.pairs = nn.Parameter(torch.randn(16, 16, 2))

    def weight(self):
        return torch.view_as_complex(self.pairs)

    def forward(self, x):
        x = self.a(x)
        return self.b(torch.fft.irfft(self.between(self, x, torch.fft.rfft(x, dim=0)), dim=0, n=x.size(0)))


SPECTRA = {
    "a complex parameter": lambda m, x, f: f @ m.weight().to(f.dtype),
    "by keyword": lambda m, x, f: f @ m.weight().conj().to(dtype=f.dtype),
    "a real one": lambda m, x, f: f @ m.pairs[..., 0].to(f.dtype),
    "made": lambda m, x, f: f * torch.ones(f.shape, dtype=f.dtype) + torch.zeros(f.shape, dtype=f.dtype),
    "the type of its parts": lambda m, x, f: f.abs().to(f.real.dtype) * f * torch.ones(16, dtype=f.dtype.to_real()),
    "the type of complex numbers": lambda m, x, f: f @ m.pairs[..., 0].to(x.dtype.to_complex()),
    "no complex number before": lambda m, x, f: torch.full(f.shape, 0.5, dtype=x.dtype.to_complex()) * f,
    "one of two types": lambda m, x, f: (
        f @ m.pairs[..., 1].to(torch.complex64 if x.dtype == torch.float32 else torch.complex128)
    ),
    "a limit": lambda m, x, f: f * (f.abs() + torch.finfo(f.dtype).eps).log() + torch.finfo(x.dtype.to_complex()).eps,
    "by mode": lambda m, x, f: (f * 2 if m.training else f) @ m.weight().to(f.dtype),
}


@pytest.mark.parametrize("what", SPECTRA)
@pytest.mark.parametrize(("before", "after"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_types_of_complex_numbers_are_cast_as_well(what, before, after, tmp_path):
    torch.manual_seed(0)
    model = Spectral(SPECTRA[what]).to(before)
    gm, small = halved(model, ROWS.to(before))
    x = torch.cat([ROWS, ROWS]).to(after)
    for training in (False, True):
        expected = copy.deepcopy(model).to(after).train(training)(x)
        for graph in (gm, small, saved(small, tmp_path)):
            found = copy.deepcopy(graph).to(after).train(training)(x)
            assert found.dtype == expected.dtype == after
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Complex(nn.Module):
    """All of whose parameters are complex, as is its input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(8, 8, dtype=torch.complex64)) for _ in range(2))

    def forward(self, z):
        z = z @ self.a * torch.ones(8, dtype=z.dtype.to_real())
        return z @ self.b.to(z.dtype) + torch.zeros(8, dtype=z.dtype)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_a_complex_model_is_cast():
    z = torch.complex(ROWS, ROWS.flip(0))
    gm = fx_oto.prepare(Complex(), z)
    for training in (False, True):
        found = copy.deepcopy(gm).to(torch.complex128).train(training)
        spelled = {value.dtype for _, value in run(found, z.to(torch.complex128)) if isinstance(value, torch.Tensor)}
        assert spelled == {torch.complex128, torch.float64}


@pytest.mark.parametrize("kind", NETWORKS)
def test_files_keep_it(kind, tmp_path):
    _, small = halved(kind(), ROWS)
    loaded = saved(small, tmp_path).to(torch.bfloat16)
    x = ROWS.to(torch.bfloat16)
    assert torch.equal(loaded.eval()(x), copy.deepcopy(small).to(torch.bfloat16).eval()(x))


@pytest.mark.parametrize("kind", NETWORKS)
def test_exporters_take_it(kind):
    _, small = halved(kind(), ROWS)
    small = small.eval()
    exported = torch.export.export(small, (ROWS,)).module()
    torch.testing.assert_close(exported(ROWS), small(ROWS))


@pytest.mark.parametrize("kind", [Net, UpAndDown])
def test_a_model_is_captured_again_only_where_a_type_is_spelled(kind, monkeypatch):
    class Plain(Net):
        def between(self, x):
            return x.relu()

    cloned = []
    monkeypatch.setattr(precision, "clone_module", lambda *args: cloned.append(args) or clone(*args))
    fx_oto.prepare(Plain() if kind is Net else kind(), ROWS)
    assert len(cloned) == (0 if kind is Net else 1)


clone = precision.clone_module


class Decides(Net):
    def between(self, x):
        return x * 2 if x.dtype == torch.float32 else x.float().to(x.dtype)


def test_code_that_decides_by_type_is_captured_for_its_own():
    model = Decides()
    gm = fx_oto.prepare(model, ROWS)
    torch.testing.assert_close(gm(ROWS), model(ROWS))


@pytest.mark.parametrize("name", ["Llama", "Bert"])
def test_language_models(name):
    without_compiled_library()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "attn_implementation": "eager" if name == "Bert" else "sdpa"}
    config = getattr(transformers, f"{name}Config")(**sizes, use_cache=False)
    model = getattr(transformers, f"{name}Model")(config).eval()
    tokens, mask = torch.randint(60, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    _, small = halved(model, inputs)
    for kind in (torch.bfloat16, torch.float16):
        expected = copy.deepcopy(model).to(kind)(**inputs)[0]
        torch.testing.assert_close(copy.deepcopy(small).to(kind)(**inputs)[0], expected, rtol=2e-2, atol=2e-2)


class CastsToParameter(Net):
    def forward(self, x):
        return super().forward(x.to(self.a.weight.dtype))


class CastsToFirstParameter(Net):
    def forward(self, x):
        kind = next(self.parameters()).dtype
        return super().forward(x if x.dtype == kind else x.type(kind))

    def between(self, x):
        return x.relu()


class CastsLikeParameter(Net):
    def forward(self, x):
        return super().forward(x.to(self.b.bias))


class CastsBack(Net):
    def forward(self, x):
        before = x.dtype
        return super().forward(x.to(self.a.weight.dtype)).to(before)


class CastsBackTwice(Net):
    def forward(self, x):
        before = x.dtype
        x = super().forward(x.to(dtype=self.a.weight.dtype) * torch.ones(8, dtype=self.b.weight.dtype))
        return x.to(before), x.new_zeros(2, dtype=before), torch.full((2,), torch.finfo(before).eps, dtype=before)


CASTING = [CastsToParameter, CastsToFirstParameter, CastsLikeParameter, CastsBack, CastsBackTwice]
for kind in CASTING[:1] + CASTING[2:]:
    kind.between = UpAndDown.between


@pytest.mark.parametrize("kind", CASTING)
@pytest.mark.parametrize("model_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("input_type", [torch.float64, torch.float32, torch.float16])
def test_inputs_of_another_type(kind, model_type, input_type):
    """A model that casts its inputs takes those of any type, whichever the example had."""
    torch.manual_seed(0)
    model = kind()
    gm, small = halved(model, ROWS)
    for training in (False, True):
        x = torch.cat([ROWS, ROWS]).to(input_type)
        expected = copy.deepcopy(model).to(model_type).train(training)(x)
        for graph in (gm, small):
            found = copy.deepcopy(graph).to(model_type).train(training)(x)
            for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
                assert one.dtype == other.dtype
                torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


class KeepsTypeOfInput(Net):
    def between(self, x):
        return x.relu()

    def forward(self, x):
        before = x.dtype
        return super().forward(x.float()).to(before)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.uint8])
def test_inputs_of_another_type_for_a_model_of_one(kind):
    model = KeepsTypeOfInput()
    gm, small = halved(model, ROWS)
    x = (ROWS * 20).abs().to(kind)
    for graph in (gm, small):
        assert graph(x).dtype == kind
        torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1 if kind == torch.uint8 else 1e-3)


def test_images_for_a_cast_transformer():
    without_compiled_library()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **sizes)).eval()
    images = torch.randn(2, 3, 16, 16)
    _, small = halved(model, {"pixel_values": images})
    expected = model.to(torch.bfloat16)(images)[0]
    torch.testing.assert_close(small.to(torch.bfloat16)(pixel_values=images)[0], expected, rtol=2e-2, atol=2e-2)

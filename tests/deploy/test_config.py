"""The configuration of a written-back model says its widths, or the report tells why it cannot."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from support.exactness import randomise
from support.vision import without_compiled_library
from torch import nn

import fx_oto

X = torch.randn(2, 6, 16, dtype=torch.float64)


class Configured(nn.Module):
    """What is built from a configuration alone."""

    def __init__(self, config):
        super().__init__()
        self.config = config


class Attention(nn.Module):
    """Self-attention whose heads fill the width, if the configuration has no width of heads."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.head_dim = getattr(config, "head_dim", None) or config.width // config.heads
        inner = self.heads * self.head_dim
        self.q, self.k, self.v = (nn.Linear(config.width, inner) for _ in range(3))
        self.out = nn.Linear(inner, config.width)

    def forward(self, x):
        shape = (*x.shape[:-1], self.heads, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()


class Layer(nn.Module):
    def __init__(self, config, inner):
        super().__init__()
        self.norm = RMSNorm(config.width, config.eps) if config.eps else nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.up, self.down = nn.Linear(config.width, inner), nn.Linear(inner, config.width)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(self.up(x).relu())


class Transformer(Configured):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Linear(16, config.width)
        self.layers = nn.ModuleList(Layer(config, config.inner or 3 * config.width) for _ in range(config.depth))
        self.head = nn.Linear(config.width, 5)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@dataclass
class Settings:
    width: int = 16
    heads: int = 4
    inner: int | None = 24
    depth: int = 2
    eps: float | None = 1e-5
    depths: list[int] = field(default_factory=lambda: [1, 2])  # that nothing reads


def prepared(model, **options):
    model = randomise(model.eval()).double()
    return model, fx_oto.prepare(model, X, **options)


def halved(gm, but=()):
    """Half of each family, but of some only a quarter."""
    partition = fx_oto.partition(gm)
    for i, family in enumerate(partition.families):
        parts = 4 if any(family.matches(pattern) for pattern in but) else 2
        order = torch.randperm(len(family), generator=torch.Generator().manual_seed(i))
        partition.zero_zigs_(i, order[: len(family) // parts])
    return gm


def written(model, but=(), **options):
    """The model written back, and the report."""
    model, gm = prepared(model, **options)
    return with_report(fx_oto.compress(halved(gm, but), into=model))


def with_report(result):
    return result, fx_oto.WriteBack.of(result)


def said(result, report):
    """What the configuration says of a model that its class builds anew and that computes the same."""
    report.check_config()
    rebuilt = type(result)(copy.deepcopy(result.config)).double().eval()
    rebuilt.load_state_dict(result.state_dict())
    with torch.no_grad():
        for batch in (X, torch.randn(5, *X.shape[1:], dtype=torch.float64)):
            assert torch.equal(rebuilt(batch), result(batch))
    return {change.name: (change.before, change.after) for change in report.config}


def test_widths_heads_and_epsilons_are_said():
    settings = Settings()
    result, report = written(Transformer(settings))
    changes = {"width": (16, 8), "heads": (4, 2), "inner": (24, 12), "eps": (1e-5, 2e-5)}
    assert said(result, report) == changes
    assert settings == Settings()
    assert "width" in str(report)
    assert {one["name"] for one in report.to_dict()["config"]} == set(changes)


def test_a_second_round_begins_with_the_new_configuration():
    first, _ = written(Transformer(Settings(eps=None)), unprunable=["embed", "*.attention.q"])
    second = fx_oto.compress(halved(fx_oto.prepare(first, X, unprunable=["embed"])), into=first)
    changes = said(*with_report(second))
    assert changes == {"heads": (4, 2), "head_dim": (None, 4), "inner": (12, 6)}
    assert first.config.inner == 12


def test_what_a_configuration_leaves_out_is_made():
    result, report = written(Transformer(Settings(inner=None)), unprunable=["embed"])
    assert said(result, report) == {"heads": (4, 2), "inner": (None, 24), "head_dim": (None, 4)}


def test_what_code_would_compute_all_the_same_is_left_out():
    result, report = written(Transformer(Settings(inner=None)))
    assert said(result, report) == {"width": (16, 8), "heads": (4, 2), "eps": (1e-5, 2e-5)}


def test_a_number_that_is_multiplied_and_rounded():
    class Ratio(Configured):
        def __init__(self, config):
            super().__init__(config)
            widths = [12, 20]
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(16, int(n * config.ratio)), nn.ReLU(), nn.Linear(int(n * config.ratio), 16))
                for n in widths
            )

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    for ratio in (4.0, 1.7):
        result, report = written(Ratio(SimpleNamespace(ratio=ratio)))
        assert said(result, report) == {"ratio": (ratio, pytest.approx(ratio / 2, abs=1e-6))}


def test_numbers_in_lists_and_in_objects():
    class Nested(Configured):
        def __init__(self, config):
            super().__init__(config)
            widths = (16, *config.part.widths, 4)
            self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).relu()
            return x

    for kind in (list, tuple):
        result, report = written(Nested(SimpleNamespace(part=SimpleNamespace(widths=kind((8, 12))), widths=[3, 3])))
        assert said(result, report) == {"part.widths[0]": (8, 4), "part.widths[1]": (12, 6)}


def test_layers_that_differ_are_refused():
    result, report = written(Transformer(Settings()), but=["layers.1.up"], unprunable=["embed", "*.attention"])
    assert result.config == Settings()
    assert result.layers[0].up.out_features == 12
    with pytest.raises(fx_oto.SlicingError, match=r"layers.1.up.weight\[0\] has 12, and must have 18.*config_limits"):
        report.check_config()
    assert "layers.1.up" in str(report)


def test_norms_that_no_configuration_says_are_refused():
    _, report = written(Transformer(Settings(eps=None)), unprunable=["*.attention.q"])
    assert report.layers
    with pytest.raises(fx_oto.SlicingError, match=r"layers.0.norm.* LayerNormOver"):
        report.check_config()
    result, report = written(Transformer(Settings(eps=None)), unprunable=["embed"])
    assert set(said(result, report)) == {"heads", "head_dim", "inner"}


def test_a_buffer_that_was_changed_is_refused():
    class Scaled(Transformer):
        def __init__(self, config):
            super().__init__(config)
            self.register_buffer("scale", torch.ones(16), persistent=False)

        def forward(self, x):
            return super().forward(x * self.scale)

    model = Scaled(Settings())
    model.scale *= 2
    _, report = written(model)
    assert "'scale', which no file holds" in report.config_refusal


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda model: setattr(model.config, "width", 32), "is another model than the one that was compressed"),
        (lambda model: delattr(model.config, "width"), r"Transformer\(config\) fails"),
        (lambda model: setattr(model.layers[0].attention, "head_dim", 2), "by this"),
    ],
)
def test_a_model_that_its_configuration_does_not_say(change, text):
    model = Transformer(SimpleNamespace(**vars(Settings())))
    if text == "by this":
        model.layers[0].attention.extra = nn.Parameter(torch.ones(3))
    else:
        change(model)
    _, report = written(model)
    with pytest.raises(fx_oto.SlicingError, match=text):
        report.check_config()
    with pytest.raises(fx_oto.InputError, match=r"Transformer\(config\)"):
        fx_oto.config_limits(fx_oto.prepare(model, X), model)


def test_limits_are_known_before_a_training():
    model, gm = prepared(Transformer(Settings()))
    before = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    limits = fx_oto.config_limits(gm, model)
    assert limits.uniform == ("embed", "layers.*.attention.q", "layers.*.up")
    assert limits.unprunable == ()
    assert all(torch.equal(before[name], tensor) for name, tensor in gm.state_dict().items())
    assert "inner" in str(limits)
    assert limits.to_dict()["tied"][2]["settings"] == ["inner"]


def test_limits_leave_alone_what_only_a_trial_shows():
    model, gm = prepared(Transformer(Settings(eps=None)))
    limits = fx_oto.config_limits(gm, model)
    assert limits.uniform == ("layers.*.attention.q", "layers.*.up")
    assert limits.unprunable == ("embed",)
    assert "LayerNormOver" in limits.tied[-1].reason


def test_a_training_within_the_limits():
    torch.manual_seed(0)
    model, gm = prepared(Transformer(Settings(eps=None)))
    limits = fx_oto.config_limits(gm, model)
    options = {"uniform": limits.uniform, "unprunable": limits.unprunable, "target_params": 0.8, "total_steps": 12}
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=1e-3, **options)
    for _ in range(12):
        optimizer.zero_grad()
        gm(X).square().mean().backward()
        optimizer.step()
    assert said(*with_report(fx_oto.compress(gm, into=model)))


def test_families_of_several_names_in_one_set():
    class Two(Configured):
        def __init__(self, config):
            super().__init__(config)
            self.first, self.other = nn.Linear(16, config.inner), nn.Linear(16, config.inner)
            self.third, self.out = nn.Linear(16, 8), nn.Linear(2 * config.inner + 8, 4)

        def forward(self, x):
            return self.out(torch.cat((self.first(x).relu(), self.other(x).relu(), self.third(x).relu()), -1))

    model, gm = prepared(Two(SimpleNamespace(inner=8)))
    limits = fx_oto.config_limits(gm, model)
    assert limits.uniform == (("first", "other"),)
    assert limits.unprunable == ("third",)
    options = {"uniform": limits.uniform, "unprunable": limits.unprunable, "target_group_sparsity": 0.3}
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=1e-3, total_steps=12, **options)
    for _ in range(12):
        optimizer.zero_grad()
        gm(X).square().mean().backward()
        optimizer.step()
    first, other, third = fx_oto.partition(gm).removed().tolist()
    assert first == other > third == 0
    assert set(said(*with_report(fx_oto.compress(gm, into=model)))) == {"inner"}


BUILDS = {
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 3}, {"mlp_ratio"}),
    "resnet18": ({"channels": (8, 12, 16, 24)}, {f"channels[{i}]" for i in range(4)}),
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_call_that_builds_the_model(name):
    without_compiled_library()
    timm = pytest.importorskip("timm", reason="timm is not installed")
    keywords, settings = BUILDS[name]
    build = partial(timm.create_model, name, num_classes=5, **keywords)
    model = build().eval()
    images = torch.randn(2, 3, keywords.get("img_size", 32), keywords.get("img_size", 32))
    gm = fx_oto.prepare(model, images)
    limits = fx_oto.config_limits(gm, model, build)
    assert {name for one in limits.tied if not one.reason for name in one.settings} == settings
    gm = halved(fx_oto.prepare(model, images, unprunable=limits.unprunable))
    result = fx_oto.write_back(fx_oto.compress(gm), model, build)
    report = fx_oto.WriteBack.of(result)
    report.check_config()
    assert report.call in str(report)
    assert report.call.startswith(f"timm.create_model('{name}', num_classes=5, ")
    rebuilt = eval(report.call, {"timm": timm}).eval()
    rebuilt.load_state_dict(result.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(images), result(images))
    assert sum(p.numel() for p in rebuilt.parameters()) < 0.9 * sum(p.numel() for p in model.parameters())

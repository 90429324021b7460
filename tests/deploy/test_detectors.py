"""Models whose own code cannot be captured whole: their parts are pruned, and they are the user's own class again."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from support.detectors import Detector, compressed_in_parts, differences, images_of
from support.exactness import randomise
from torch import nn

import fx_oto

PARTS = ("body", "neck", "scores", "boxes")
EXAMPLE = images_of((20, 24), (16, 28))
OTHERS = [images_of((9, 30), seed=1), images_of((40, 12), (5, 5), (33, 17), seed=2)]


def detector(kind=Detector, **options):
    torch.manual_seed(0)
    return randomise(kind(**options).double()).eval()


def check(model, small, new, others=OTHERS):
    for inputs in (EXAMPLE, *others):
        for training in (False, True):
            errors, numbers = differences(model, small, new, inputs, training)
            assert numbers
            wrong = {name: error for name, error in errors.items() if not error <= 1e-10}
            assert not wrong, (training, wrong)


@pytest.mark.parametrize(
    ("parts", "groups", "border"),
    [
        (PARTS, 3 * 16, 16),
        ([("body", "neck"), "scores", "boxes"], 4 * 16, 16),
        ([("body", "neck", "scores", "boxes")], 5 * 16, 8),
        ("body", 16, 16),
    ],
)
def test_it_is_the_users_own_class_at_any_sizes_and_with_its_own_losses(parts, groups, border):
    model = detector()
    small, new = compressed_in_parts(model, EXAMPLE, parts)
    assert type(new) is Detector
    assert fx_oto.partition(fx_oto.prepare(model, EXAMPLE, parts=parts)).num_zigs == groups
    assert (new.body[0].out_channels, new.neck.out_channels) == (8, border)
    assert fx_oto.WriteBack.of(new).graphs == ()
    check(model, small, new)
    check(model, small, pickle.loads(pickle.dumps(new)), others=())


def test_it_trains_with_its_own_losses_and_is_compressed_at_once():
    model = detector()
    gm = fx_oto.prepare(model, EXAMPLE, parts=PARTS)
    optimizer = fx_oto.DHSPG(gm, torch.optim.AdamW, lr=1e-2, target_group_sparsity=0.5, total_steps=12)
    scale = model.scale.detach().clone()
    model.train()
    for step in range(12):
        sum(model(*images_of((16, 20), (8 + step, 24), seed=step)).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(model.scale, scale)  # which no part has
    new = fx_oto.compress(gm, into=model)
    assert fx_oto.partition(gm).group_sparsity() == 0.5
    assert sum(p.numel() for p in new.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    sum(new(*OTHERS[1]).values()).backward()
    assert all(parameter.grad is not None for parameter in new.parameters())


class Levels(Detector):
    """Heads that are called for each of several levels, by keywords."""

    def heads(self, features):
        levels = [features, features[:, :, ::2, ::2]]
        found = [(self.scores(input=level), self.boxes(level)) for level in levels]
        scores, boxes = zip(*found, strict=True)
        return tuple(torch.cat([one.flatten(2) for one in ones], 2) for ones in (scores, boxes))


class Chooses(Detector):
    """A head that sees in evaluation what scores well, which may be nothing, and in training what is sampled."""

    def heads(self, features):
        scores, rows = self.scores(features), features.permute(0, 2, 3, 1).reshape(-1, features.size(1))
        rows = rows[:5] if self.training else rows[scores.amax(1).flatten() > 1e9]
        chosen = self.boxes(rows[:, :, None, None])
        return scores, chosen.sum(0)[None].expand(len(scores), -1, *features.shape[2:])


class Regularised(Detector):
    """Code outside of the parts reads weights of one."""

    def losses(self, scores, boxes, targets):
        return super().losses(scores, boxes, targets) | {"decay": self.boxes[0].weight.square().mean()}


class Inside(Detector):
    """Code outside of the parts calls a layer of one."""

    def heads(self, features):
        scores, boxes = super().heads(features)
        return scores + self.scores[2](self.scores[0](features)), boxes


@pytest.mark.parametrize("kind", [Levels, Chooses, Regularised, Inside])
def test_how_parts_are_called(kind):
    model = detector(kind)
    small, new = compressed_in_parts(model, EXAMPLE, PARTS)
    assert type(new) is kind
    assert new.body[0].out_channels == 8
    assert new.boxes[0].out_channels == (16 if kind is Regularised else 8)
    assert new.scores[0].out_channels == (16 if kind is Inside else 8)
    check(model, small, new)


def test_calls_of_one_form_are_one_call():
    gm = fx_oto.prepare(detector(Levels), EXAMPLE, parts=PARTS)
    assert len(fx_oto.Context.of(gm).parts.calls) == len(PARTS)


def test_the_model_is_left_as_it_was():
    model = detector()
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    fx_oto.prepare(model, EXAMPLE, parts=PARTS)
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_of_the_model_and_what_it_holds_besides_stay():
    model, seen = detector(), []
    model.classes = ["cat", "dog"]
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    small, new = compressed_in_parts(model, EXAMPLE, PARTS)
    seen.clear()
    new(images_of((9, 9))[0])
    assert seen == [1]
    assert new.classes == model.classes
    check(model, small, new)


def doubled(module, args, result):
    return 2 * result


def test_hooks_of_parts_are_run_with_them():
    model = detector()
    model.body.register_forward_hook(doubled)
    model.scores.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    small, new = compressed_in_parts(model, EXAMPLE, PARTS)
    assert new.body[0].out_channels == 8
    check(model, small, new)


class Outer(nn.Module):
    """A detector inside of something else."""

    def __init__(self):
        super().__init__()
        self.inner = Detector()

    def forward(self, images, targets=None):
        return self.inner(images, targets)


def test_parts_of_parts_are_named_by_their_path():
    model = detector(Outer)
    small, new = compressed_in_parts(model, EXAMPLE, [("inner.body", "inner.neck"), "inner.scores"])
    assert new.inner.body[0].out_channels == 8
    assert new.inner.boxes[0].out_channels == 16
    check(model, small, new)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (
            ["neck.0"],
            "no submodule 'neck.0' to be a part; the model has 'body', 'neck', 'scores', 'boxes', and those in",
        ),
        (["scale"], "no submodule 'scale'"),
        ([""], "no submodule ''"),
        (["body", "body.0"], "the parts 'body' and 'body.0' have modules in common: name one"),
        ([("body", "neck"), "neck"], "the parts 'neck' and 'neck' have modules in common"),
    ],
)
def test_what_is_no_part(parts, text):
    with pytest.raises(fx_oto.SettingsError, match=re.escape(text)):
        fx_oto.prepare(detector(), EXAMPLE, parts=parts)


class Returned(Detector):
    """Returns what its parts hand to each other."""

    def detections(self, scores, boxes):
        return [*super().detections(scores, boxes), self.features]

    def heads(self, features):
        self.features = features
        return super().heads(features)


@pytest.mark.parametrize(
    ("kind", "parts", "text"),
    [
        (Detector, ["body", ("neck", "scores")], "'neck' hands to another part of ('neck', 'scores') is read at"),
        (Detector, [("neck", "scores"), "boxes"], "is given to 'boxes' as well, so that it must stay whole"),
        (Returned, [("neck", "scores", "boxes")], "is an output of the model as well"),
    ],
)
def test_what_more_than_the_next_part_reads(kind, parts, text):
    with pytest.raises(fx_oto.InputError, match=re.escape(text)):
        fx_oto.prepare(detector(kind), EXAMPLE, parts=parts)


class Unused(Detector):
    """Never calls one of its parts, or on nothing."""

    def heads(self, features):
        return super().heads(features) if features.size(0) > 5 else (self.scores(features), features[:, :4])


class Empty(Chooses):
    def forward(self, images, targets=None):
        with torch.no_grad():
            self.boxes(torch.zeros(0, 16, 1, 1, dtype=torch.float64))
        return Unused.heads(self, self.neck(self.body(torch.stack([image[:, :5, :5] for image in images]))))[:1]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Unused, "the model does not call 'boxes' on the example inputs: give inputs on which it does"),
        (Empty, "'boxes' is called on tensors without elements, which shows nothing"),
    ],
)
def test_what_shows_nothing(kind, text):
    with pytest.raises(fx_oto.InputError, match=text):
        fx_oto.prepare(detector(kind), EXAMPLE, parts=PARTS)


def test_without_targets_it_says_that_training_was_not_seen():
    with pytest.warns(fx_oto.FxOtoWarning, match=r"does not run in training mode .*\(targets are needed at"):
        gm = fx_oto.prepare(detector(), (EXAMPLE[0],), parts=PARTS)
    assert fx_oto.partition(gm).num_zigs == 48


def test_a_graph_has_no_parts():
    gm = fx_oto.trace(nn.Linear(4, 8), torch.randn(2, 4))
    with pytest.raises(fx_oto.SettingsError, match="a GraphModule is captured already"):
        fx_oto.prepare(gm, torch.randn(2, 4), parts=["0"])


def test_inputs_on_which_the_model_does_not_run():
    with pytest.raises(fx_oto.InputError, match="does not run on the example inputs"):
        fx_oto.prepare(detector(), ([torch.rand(4, 9, 9).double()],), parts=PARTS)


class OfChannels(Detector):
    """Asks how many channels there are, of what one part hands to another."""

    def heads(self, features):
        found, boxes = super().heads(features)
        return found / features.shape[1], boxes


def test_code_that_computes_with_a_size_that_was_cut_is_noticed():
    model = detector(OfChannels)
    gm = fx_oto.prepare(model, EXAMPLE, parts=[("body", "neck", "scores", "boxes")])
    fx_oto.partition(gm).zero_(0.5)
    with pytest.warns(fx_oto.FxOtoWarning, match=r"the whole model returns .* name these parts one by one"):
        fx_oto.compress(gm, into=model)
    gm = fx_oto.prepare(model, EXAMPLE, parts=PARTS)
    small = fx_oto.compress(gm)
    check(model, small, fx_oto.compress(gm, into=model))


class Scaled(nn.Module):
    """Finds out in its first call at which scale it gets images, as torchvision's pooling of regions does."""

    def __init__(self):
        super().__init__()
        self.halvings = None

    def forward(self, features, height: int):
        if self.halvings is None:
            self.halvings = int(torch.tensor(height / features.shape[2]).log2().round().item())
        for _ in range(self.halvings):
            features = features / 2
        return features


class Scaling(Detector):
    def __init__(self, **options):
        super().__init__(**options)
        self.scaled = Scaled()

    def heads(self, features):
        return super().heads(self.scaled(features, 4 * features.shape[2]))


@pytest.mark.parametrize("was_called", [False, True])
def test_what_the_first_call_finds_out_is_known(was_called):
    model = detector(Scaling)
    if was_called:
        model(*EXAMPLE)
    before = model.scaled.halvings
    gm = fx_oto.prepare(model, EXAMPLE, parts=[("body", "neck", "scaled", "scores", "boxes")])
    assert model.scaled.halvings == before
    assert not any(size.fixed for size in fx_oto.Context.of(gm).capture.sizes)
    assert fx_oto.partition(gm).num_zigs == 5 * 16
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    new = fx_oto.write_back(small, model)
    assert type(new) is Scaling
    assert model.scaled.halvings == before
    check(model, small, new)

"""The trainers that users have: Hugging Face's, Lightning, Accelerate; checkpoints, resuming, mixed precision."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from support.vision import torchvision_models
from torch import nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fx_oto
from fx_oto.integrations import compression

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
X = torch.randn(256, 16)
Y = X[:, :4].argmax(1)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def check(net, gm, optimizer, sparsity=0.5):
    """The target is reached, and the compact model is the user's."""
    assert optimizer.reached()["group sparsity"] == sparsity
    small = fx_oto.compress(gm)
    dtype = next(net.parameters()).dtype
    scale = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(small.eval()(X.to(dtype)), net.eval()(X.to(dtype)), rtol=scale, atol=scale)
    return small


def check_compact(compact, net, own):
    """What a callback has compressed is the user's model, of its class if asked to; its report has losses."""
    x = X.to(next(net.parameters()).dtype)
    tolerance = 1e-5 if x.dtype == torch.float32 else 5e-2
    torch.testing.assert_close(compact.eval()(x), net.eval()(x), rtol=tolerance, atol=tolerance)
    assert isinstance(compact, type(net) if own else GraphModule)
    assert own or any(loss is not None for _, _, loss in fx_oto.report(compact).training.rows())


def same(left, right):
    return all(map(torch.equal, left.parameters(), right.parameters()))


class Examples(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"x": X[i], "labels": Y[i]}


class WithLoss(nn.Module):
    """What Hugging Face's trainer expects: the loss comes first."""

    def __init__(self):
        super().__init__()
        self.net = make_net()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.fixture
def transformers():
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    torchvision_models()
    return pytest.importorskip("transformers", reason="transformers is not installed")


def huggingface(transformers, folder, resume=None, project=False, own=False, **settings):
    model = WithLoss()
    gm = fx_oto.prepare(model.net, X[:4])
    optimizer = fx_oto.DHSPG(gm, torch.optim.AdamW, lr=1e-2, target_group_sparsity=0.5, total_steps=40)
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=40, per_device_train_batch_size=32, gradient_accumulation_steps=2, save_steps=10,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=5, **settings,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 40)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=Examples(), eval_dataset=Examples(), optimizers=(optimizer, schedule)
    )
    from fx_oto.integrations.huggingface import CompressionCallback

    callback = CompressionCallback(gm, optimizer, project, into=model.net if own else None)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    check_compact(callback.compact, model.net, own)
    return model.net, gm, optimizer


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_hugging_faces_trainer(transformers, tmp_path, precision):
    net, gm, optimizer = huggingface(transformers, tmp_path / "first", **precision)
    check(net, gm, optimizer)
    inside = str(tmp_path / "first" / "checkpoint-20")
    assert same(huggingface(transformers, tmp_path / "second", inside, **precision)[0], net)


def test_hugging_faces_trainer_with_the_best_model_at_the_end(transformers, tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 10, "load_best_model_at_end": True}
    check(*huggingface(transformers, tmp_path, project=True, **best))


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_hugging_faces_trainer_ends_with_the_users_own_class(transformers, tmp_path, precision):
    check(*huggingface(transformers, tmp_path, own=True, **precision))


@pytest.fixture
def lightning():
    torchvision_models()
    found = pytest.importorskip("lightning", reason="lightning is not installed")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return found


def with_lightning(lightning, precision="32-true", folder=None, resume=None, own=False, **settings):
    net = make_net()
    gm = fx_oto.prepare(net, X[:4])
    optimizer = fx_oto.DHSPG(gm, torch.optim.AdamW, lr=1e-2, target_group_sparsity=0.5, total_steps=40)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, index):
            inputs, labels = batch
            return F.cross_entropy(self.net(inputs), labels)

        def configure_optimizers(self):
            return optimizer

        def validation_step(self, batch, index):
            assert not self.net.training
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def val_dataloader(self):
            return DataLoader(TensorDataset(X, Y), batch_size=64) if "val_check_interval" in settings else []

    from fx_oto.integrations.lightning import CompressionCallback

    callback = CompressionCallback(gm, optimizer, into=net if own else None)
    saving = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder, every_n_train_steps=8, save_top_k=-1, filename="{step}"
    )
    trainer = lightning.Trainer(
        max_steps=40, precision=precision, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=folder is not None,
        callbacks=[callback, saving] if folder is not None else [callback], **settings,
    )  # fmt: skip
    given = {} if resume is None else {"ckpt_path": str(resume), "weights_only": False}
    trainer.fit(Module(), DataLoader(TensorDataset(X, Y), batch_size=32), **given)
    check_compact(callback.compact, net, own)
    return net, gm, optimizer


def test_lightning_ends_with_the_users_own_class(lightning):
    check(*with_lightning(lightning, "bf16-mixed", own=True))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("trainer", ["transformers", "lightning"])
def test_a_training_is_not_lost_where_its_model_cannot_be_compressed(request, tmp_path, monkeypatch, trainer, own):
    """The trainer ends as it does; who asks for the compact model gets the error, until it can be made."""
    package, run = request.getfixturevalue(trainer), huggingface if trainer == "transformers" else with_lightning
    callbacks = []

    def fail(*_, **__):
        raise fx_oto.VerificationError("they differ")

    with monkeypatch.context() as patch:
        patch.setattr(compression, "compress", fail)
        patch.setitem(globals(), "check_compact", lambda *_: None)
        patch.setattr(compression.Compression, "compact", property(callbacks.append))
        with pytest.warns(fx_oto.FxOtoWarning, match=r"not compressed: they differ\. Its weights are as they were"):
            net, gm, optimizer = run(package, folder=tmp_path, own=own)
    with pytest.raises(fx_oto.VerificationError, match="they differ"):
        callbacks[0].compact  # noqa: B018
    callbacks[0].finish()
    assert isinstance(callbacks[0].compact, type(net) if own else GraphModule)
    check(net, gm, optimizer)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_lightning(lightning, tmp_path, precision):
    net, gm, optimizer = with_lightning(lightning, precision, tmp_path / "first")
    small = check(net, gm, optimizer)
    assert next(small.parameters()).dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    resumed, _, _ = with_lightning(lightning, precision, tmp_path / "second", tmp_path / "first" / "step=16.ckpt")
    assert same(resumed, net)


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}])
def test_lightning_accumulates_and_clips(lightning, settings):
    check(*with_lightning(lightning, **settings))


def test_lightning_evaluates(lightning):
    """Validation amid the training changes nothing of it; at the end the compact model is as good as the model."""
    net, gm, optimizer = with_lightning(lightning)
    between, _, _ = with_lightning(lightning, val_check_interval=3, limit_val_batches=2)
    assert same(between, net)
    small = check(net, gm, optimizer)

    class Module(lightning.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def test_step(self, batch, index):
            self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(enable_checkpointing=False, **quiet)
    data = DataLoader(TensorDataset(X, Y), batch_size=64)
    found = [trainer.test(Module(model), data, verbose=False)[0]["loss"] for model in (net, small)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.fixture
def accelerate():
    torchvision_models()
    return pytest.importorskip("accelerate", reason="accelerate is not installed")


def accelerated(accelerate, which, precision, folder, resume=False):
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    net = make_net()
    gm = fx_oto.prepare(net, X[:4])
    optimizer = fx_oto.DHSPG(gm, torch.optim.AdamW, lr=1e-2, target_group_sparsity=0.5, total_steps=40)
    model, step = accelerator.prepare(net if which == "model" else gm, optimizer)
    if resume:
        accelerator.load_state(folder)
    for i in range(20 if resume else 0, 40):
        batch = slice(i % 8 * 32, i % 8 * 32 + 32)
        step.zero_grad()
        accelerator.backward(F.cross_entropy(model(X[batch]), Y[batch]))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        step.step()
        if i == 19 and not resume:
            accelerator.save_state(folder)
    unwrapped = accelerator.unwrap_model(model, keep_fp32_wrapper=True)
    return net, unwrapped if which == "gm" else gm, optimizer


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("which", ["model", "gm"])
def test_accelerate(accelerate, tmp_path, which, precision):
    net, gm, optimizer = accelerated(accelerate, which, precision, str(tmp_path))
    fx_oto.compress(gm)
    assert optimizer.reached()["group sparsity"] == 0.5
    assert same(accelerated(accelerate, which, precision, str(tmp_path), resume=True)[0], net)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_evaluates(accelerate, tmp_path, precision):
    net, gm, _ = accelerated(accelerate, "model", precision, str(tmp_path))
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    loader = accelerator.prepare(DataLoader(TensorDataset(X, Y), batch_size=48))
    found = []
    for model in (net, accelerator.prepare(fx_oto.compress(gm))):
        with torch.no_grad():
            parts = [accelerator.gather_for_metrics(model.eval()(x)) for x, _ in loader]
        found.append(torch.cat(parts))
    assert len(found[0]) == len(X)
    tolerance = 5e-2 if precision == "bf16" else 1e-5
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)

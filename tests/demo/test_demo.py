"""The main job, and its reader of idx files."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pytest
import torch

import fx_oto
from fx_oto.cli.main import main
from fx_oto.demo.data import fashion_mnist, read_idx

SHARED = Path(os.environ.get("FX_OTO_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "fashion_mnist"


def write_idx(path, tensor):
    header = bytes([0, 0, 8, tensor.ndim]) + b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    content = header + bytes(tensor.reshape(-1).tolist())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    for part, count, suffix in (("train", 128, ".gz"), ("t10k", 40, "")):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", torch.randint(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", torch.arange(count) % 10)
    return tmp_path


def test_idx_files_are_read_gzipped_or_not(folder):
    images = fashion_mnist(folder)
    assert images.train.shape == (128, 1, 28, 28)
    assert images.test.shape == (40, 1, 28, 28)
    assert images.test_labels.tolist() == [i % 10 for i in range(40)]
    assert abs(float(images.train.mean())) < 1e-5


def test_bad_idx_files_are_refused(tmp_path):
    with pytest.raises(fx_oto.InputError, match=r"expected train-images-idx3-ubyte.gz or .*with --root"):
        fashion_mnist(tmp_path)
    (tmp_path / "text").write_bytes(b"hello")
    with pytest.raises(fx_oto.InputError, match=r"not an idx file of unsigned bytes: it starts with 68 65 6c 6c"):
        read_idx(tmp_path / "text")
    write_idx(tmp_path / "short", torch.zeros(3, 2, dtype=torch.int64))
    (tmp_path / "short").write_bytes((tmp_path / "short").read_bytes()[:-1])
    with pytest.raises(fx_oto.InputError, match=r"should hold \[3, 2\] bytes, found 5: the file is incomplete"):
        read_idx(tmp_path / "short")


def test_the_whole_job_on_idx_files(folder, capsys):
    arguments = ["demo", "--data", "fashion-mnist", "--root", str(folder), "--epochs", "3", "--width", "8"]
    pictures = folder / "pictures"
    arguments += ["--batch", "16", "--target", "0.6", "--draw", str(pictures)]
    assert main([*arguments, "--baseline", "--quiet"]) == 0
    for name in ("families", "widths", "training"):
        assert (pictures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert "without DHSPG" in text
    for row in ("accuracy", "parameters", "MACs per image", "file size", "latency"):
        assert row in text
    assert re.search(r"asked 0.600, reached 0.60", text)
    assert float(re.search(r"on the test images: (\S+)", text)[1]) < 1e-3


def test_errors_are_one_line(tmp_path, capsys):
    assert main(["demo", "--data", "fashion-mnist", "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: expected train-images-idx3-ubyte.gz")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--epochs", "0"], "--epochs must be at least 1; found 0"),
        (["--width", "0"], "--width must be at least 1; found 0"),
        (["--batch", "-3"], "--batch must be at least 1; found -3"),
        (["--batch", "129"], "--batch 129: there are 128 images to train on"),
        (["--lr", "-1"], "--lr must be a number above 0; found -1"),
        (["--lr", "nan"], "--lr must be a number above 0; found nan"),
        (["--target", "2"], "target_group_sparsity must be a number between 0 and 1, both excluded; found 2.0"),
    ],
)
def test_numbers_that_cannot_be_used(folder, capsys, options, text):
    assert main(["demo", "--data", "fashion-mnist", "--root", str(folder), *options]) == 2
    assert capsys.readouterr().err == f"error: {text}\n"


def test_pictures_need_a_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "taken").write_text("")
    assert main(["demo", "--root", str(tmp_path), "--draw", str(tmp_path / "taken" / "new")]) == 2
    assert f"expected a folder, but {tmp_path / 'taken'} is a file" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main(["demo", "--root", str(tmp_path), "--draw", str(tmp_path / "new")]) == 2
    assert f"nothing can be written into {tmp_path}: permission is denied" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="no Fashion-MNIST folder is at hand")
def test_the_real_files_are_read():
    images = fashion_mnist(SHARED)
    assert images.train.shape == (60_000, 1, 28, 28)
    assert images.test.shape == (10_000, 1, 28, 28)
    assert images.train_labels.bincount().tolist() == [6000] * 10

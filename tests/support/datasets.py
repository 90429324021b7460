"""Tiny data sets of random numbers in the files of the real ones."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.vision import without_compiled_library


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _some_labels(count: int, classes: int) -> Tensor:
    return torch.arange(count) * 7 % classes


def _unchecked(monkeypatch, *modules: str) -> None:
    """torchvision's readers compare checksums, which tiny files cannot have."""
    without_compiled_library()
    for name in modules:
        module = pytest.importorskip(f"torchvision.datasets.{name}")
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())


def cifar(root: Path, monkeypatch, classes: int = 10, count: int = 10) -> dict[str, tuple[Tensor, Tensor]]:
    """The archive for Python, unpacked: pickled batches of rows, all red pixels first."""
    _unchecked(monkeypatch, "cifar")
    key, folder, meta = (
        ("labels", "cifar-10-batches-py", ("batches.meta", "label_names"))
        if classes == 10
        else ("fine_labels", "cifar-100-python", ("meta", "fine_label_names"))
    )
    parts = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    (root / folder).mkdir(parents=True)
    written = {}
    for i, part in enumerate(parts):
        images, labels = random_images(count, 3, 32, 32, seed=i), _some_labels(count, classes)
        entry = {"data": images.reshape(count, -1).numpy(), key: labels.tolist()}
        (root / folder / part).write_bytes(pickle.dumps(entry))
        written[part] = images, labels
    (root / folder / meta[0]).write_bytes(pickle.dumps({meta[1]: [str(i) for i in range(classes)]}))
    return written


def svhn(root: Path, monkeypatch, count: int = 10) -> dict[str, tuple[Tensor, Tensor]]:
    """Matlab's files: height, width, colour, number; the digit 0 is the class 10."""
    _unchecked(monkeypatch, "svhn")
    scipy_io = pytest.importorskip("scipy.io")
    written = {}
    for i, part in enumerate(("train", "test")):
        images, labels = random_images(count, 3, 32, 32, seed=i), _some_labels(count, 10)
        stored = torch.where(labels == 0, 10, labels)[:, None].to(torch.uint8)
        path = root / f"{part}_32x32.mat"
        scipy_io.savemat(path, {"X": images.permute(2, 3, 1, 0).numpy(), "y": stored.numpy()})
        written[part] = images, labels
    return written


def fashion_mnist(root: Path, compressed: bool = True, count: int = 10) -> dict[str, tuple[Tensor, Tensor]]:
    """Idx files, as they are distributed, or unpacked into torchvision's folders."""
    folder = root if compressed else root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for i, part in enumerate(("train", "t10k")):
        images, labels = random_images(count, 28, 28, seed=i), _some_labels(count, 10)
        for name, numbers in (("images-idx3", images), ("labels-idx1", labels.to(torch.uint8))):
            sizes = b"".join(n.to_bytes(4, "big") for n in numbers.shape)
            content = bytes((0, 0, 8, numbers.dim())) + sizes + numbers.numpy().tobytes()
            path = folder / f"{part}-{name}-ubyte{'.gz' * compressed}"
            path.write_bytes(gzip.compress(content) if compressed else content)
        written[part] = images, labels
    return written


def picture(path: Path, pixels: Tensor) -> None:
    """Write bytes ``(3, h, w)`` in the format of the file's name."""
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def image_folders(root: Path, classes: int = 3, count: int = 2) -> None:
    """A folder of JPEG files for each class, in ``train`` and in ``val``."""
    for part in ("train", "val"):
        for i in range(classes):
            for j in range(count):
                picture(root / part / f"n{i:08}" / f"{j}.JPEG", random_images(3, 40, 48, seed=10 * i + j))


def div2k(root: Path, size: int = 70, count: int = 2) -> None:
    """DIV2K's pairs; Set14 in the layout of the one archive that is about, B100 and Urban100 in that of the other."""
    for i in range(1, count + 1):
        high = random_images(3, 2 * size, 2 * size + 4, seed=i)
        low = high[:, ::2, ::2].contiguous()
        picture(root / "DIV2K_train_HR" / f"{i:04}.png", high)
        picture(root / "DIV2K_train_LR_bicubic" / "X2" / f"{i:04}x2.png", low)
        small, large = low[:, :17, :20].contiguous(), high[:, :35, :40].contiguous()  # an odd height
        picture(root / "Set14" / "x2" / f"img_{i:03}_SRF_2_HR.png", large)
        picture(root / "Set14" / "x2" / f"img_{i:03}_SRF_2_LR.png", small)
        for name in ("B100", "Urban100"):
            picture(root / "benchmark" / name / "HR" / f"{i}.png", large)
            picture(root / "benchmark" / name / "LR_bicubic" / "X2" / f"{i}x2.png", small)


PARAGRAPH = "The old mill stands by the river . It was built of red stone in 1820 by two brothers ."


def squad(root: Path, repeat: int = 1) -> None:
    """Both files of SQuAD 1.1, with the same three questions."""
    paragraph = " ".join([PARAGRAPH] * repeat)
    asked = {
        "Where does the mill stand ?": "by the river",
        "When was it built ?": "1820",
        "Who built it ?": "two brothers",
    }
    questions = [
        {"id": str(i), "question": question, "answers": [{"text": answer, "answer_start": paragraph.rindex(answer)}]}
        for i, (question, answer) in enumerate(asked.items())
    ]
    content = {"version": "1.1", "data": [{"title": "Mill", "paragraphs": [{"context": paragraph, "qas": questions}]}]}
    root.mkdir(parents=True, exist_ok=True)
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (root / name).write_text(json.dumps(content))


def tiny_bert(folder: Path, width: int = 32) -> None:
    """A folder as of a pretrained BERT: configuration, weights, tokenizer."""
    without_compiled_library()
    transformers = pytest.importorskip("transformers")
    words = sorted(set(PARAGRAPH.lower().split()) | {"where", "does", "stand", "?", "when", "who", "built"})
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=len(vocabulary), **sizes)
    transformers.BertForQuestionAnswering(config).save_pretrained(folder)

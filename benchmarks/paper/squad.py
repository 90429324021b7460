"""SQuAD 1.1: questions about a paragraph, answered by a span of it; F1 and exact match are the scores."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fx_oto
from benchmarks.paper.networks import transformers
from benchmarks.paper.recipes import Recipe
from benchmarks.paper.tasks import SHAPES, Options, missing, spread

__all__ = ["Question", "QuestionAnswering", "exact", "f1", "read"]

_STRIDE, _BEST, _LONGEST, _EVALUATED, _TOGETHER = 128, 20, 30, 16, 1000
Batch = tuple[dict[str, Tensor], Tensor]
Place = tuple[int, int] | None
# Inputs (windows, tokens), spans of answers (windows, 2), whose question each is, and where tokens of the paragraph
# begin and end in it; None for all other tokens.
Windows = tuple[dict[str, Tensor], Tensor, list[int], list[list[Place]]]


@dataclass(frozen=True)
class Question:
    """A question, its paragraph, the answers that count as right, and where the first of them begins."""

    text: str
    paragraph: str
    answers: tuple[str, ...]
    start: int


def read(path: Path) -> list[Question]:
    """The questions of a file of SQuAD 1.1.

    Raises:
        InputError: the file is not there, or not of that format.
    """
    if not path.is_file():
        raise missing("SQuAD 1.1", path.parent, "train-v1.1.json and dev-v1.1.json")
    try:
        return [
            Question(
                one["question"],
                paragraph["context"],
                tuple(answer["text"] for answer in one["answers"]),
                one["answers"][0]["answer_start"],
            )
            for article in json.loads(path.read_text(encoding="utf-8"))["data"]
            for paragraph in article["paragraphs"]
            for one in paragraph["qas"]
        ]
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise fx_oto.InputError(f"{path} is not of SQuAD 1.1: {type(error).__name__} {error}") from error


class QuestionAnswering:
    """Paragraphs cut into overlapping windows of tokens; a model says where an answer begins and ends."""

    def __init__(self, recipe: Recipe, root: Path, options: Options) -> None:
        self.batch, self.device = recipe.batch, options.device
        self.generator = torch.Generator()
        (self.length,), _ = SHAPES[recipe.data]
        self.tokenizer = _tokenizer(options.weights)
        train, self.questions = read(root / "train-v1.1.json"), read(root / "dev-v1.1.json")
        train = [train[i] for i in spread(len(train), options.subset).tolist()]
        parts = [(inputs, spans) for inputs, spans, _, _ in self.windows(train)]
        self.inputs = {name: torch.cat([inputs[name] for inputs, _ in parts]) for name in parts[0][0]}
        self.spans = torch.cat([spans for _, spans in parts])
        self.counts = len(train), len(self.questions)
        self.example = self._move({name: value[:1].expand(2, -1) for name, value in self.inputs.items()})

    def windows(self, questions: list[Question]) -> Iterator[Windows]:
        """Some questions at a time: places of tokens are many, and kept for those that are being scored only."""
        for first in range(0, len(questions), _TOGETHER):
            yield self._windows(questions, first)

    def _windows(self, questions: list[Question], first: int) -> Windows:
        some = questions[first : first + _TOGETHER]
        found = self.tokenizer(
            [one.text.strip() for one in some],
            [one.paragraph for one in some],
            truncation="only_second",
            max_length=self.length,
            stride=_STRIDE,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding="max_length",
        )
        owners, places = found.pop("overflow_to_sample_mapping"), found.pop("offset_mapping")
        inside = []
        for i, one in enumerate(places):
            parts = found.sequence_ids(i)
            inside.append([place if part == 1 else None for place, part in zip(one, parts, strict=True)])
        spans = [_span(some[owner], places) for owner, places in zip(owners, inside, strict=True)]
        inputs = {name: torch.tensor(value) for name, value in found.items()}
        return inputs, torch.tensor(spans), [first + owner for owner in owners], inside

    def _move(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in inputs.items()}

    def steps(self) -> int:
        """An incomplete last batch counts."""
        return -(-len(self.spans) // self.batch)

    def batches(self) -> Iterator[Batch]:
        """One shuffled pass."""
        for index in torch.randperm(len(self.spans), generator=self.generator).split(self.batch):
            inputs = {name: value[index] for name, value in self.inputs.items()}
            yield self._move(inputs), self.spans[index].to(self.device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of beginnings and ends."""
        found = model(**batch[0])
        ends = zip((found["start_logits"], found["end_logits"]), batch[1].unbind(1), strict=True)
        return sum((F.cross_entropy(logits, where) for logits, where in ends), torch.zeros(())) / 2

    @torch.no_grad()
    def score(self, model: nn.Module) -> dict[str, float]:
        """Means over the questions, in percent."""
        model.eval()
        best = [(-float("inf"), "")] * len(self.questions)
        for inputs, _, owners, inside in self.windows(self.questions):
            for (starts, ends), owner, places in zip(self._logits(model, inputs), owners, inside, strict=True):
                value, start, end = _likeliest(starts, ends, places)
                best[owner] = max(best[owner], (value, self.questions[owner].paragraph[start:end]))
        pairs = [(answer, one.answers) for (_, answer), one in zip(best, self.questions, strict=True)]
        means = {"F1": _mean(f1(*pair) for pair in pairs), "EM": _mean(exact(*pair) for pair in pairs)}
        return {name: round(100 * value, 2) for name, value in means.items()}

    def _logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each window: of beginnings ``(tokens,)`` and of ends."""
        for first in range(0, len(inputs["input_ids"]), _EVALUATED):
            part = {name: value[first : first + _EVALUATED] for name, value in inputs.items()}
            found = model(**self._move(part))
            yield from zip(found["start_logits"].cpu(), found["end_logits"].cpu(), strict=True)


def _tokenizer(folder: Path | None) -> Any:
    if folder is None or not (Path(folder) / "config.json").is_file():
        raise fx_oto.InputError(
            "SQuAD needs the tokenizer's files of a pretrained BERT: give its folder, with config.json, the weights "
            f"and vocab.txt or tokenizer.json, with --weights; found {folder}"
        )
    return transformers().AutoTokenizer.from_pretrained(folder, use_fast=True)


def _span(question: Question, places: list[Place]) -> tuple[int, int]:
    """First and last token of the answer, or the first token twice where this window has not all of it."""
    start, end = question.start, question.start + len(question.answers[0])
    known = [i for i, place in enumerate(places) if place is not None]
    if not known or places[known[0]][0] > start or places[known[-1]][1] < end:
        return 0, 0
    covered = [i for i in known if places[i][1] > start and places[i][0] < end]
    return (covered[0], covered[-1]) if covered else (0, 0)


def _likeliest(starts: Tensor, ends: Tensor, places: list[Place]) -> tuple[float, int, int]:
    """The best of the spans between the best beginnings and ends: its value, and where it stands in the paragraph."""
    best = (-float("inf"), 0, 0)
    count = min(_BEST, len(starts))
    for i in starts.topk(count).indices.tolist():
        for j in ends.topk(count).indices.tolist():
            first, last = places[i], places[j]
            if first is None or last is None or not i <= j < i + _LONGEST:
                continue
            best = max(best, (float(starts[i] + ends[j]), first[0], last[1]))
    return best


# -- scores, as SQuAD's own script has them ------------------------------------------------------------------


def _plain(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def exact(found: str, answers: Iterable[str]) -> float:
    """1 if it is one of the answers, but for capitals, punctuation, articles and spaces."""
    return float(any(_plain(found) == _plain(answer) for answer in answers))


def f1(found: str, answers: Iterable[str]) -> float:
    """The largest F1 of the words over the answers."""
    return max(_f1(_plain(found), _plain(answer)) for answer in answers)


def _f1(found: list[str], right: list[str]) -> float:
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right)) if common else 0.0


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)

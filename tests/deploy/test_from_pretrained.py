"""``save_pretrained`` of a written-back model, and ``from_pretrained`` in a process without fx_oto: the same model."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support import pretrained
from support.vision import without_compiled_library

import fx_oto

without_compiled_library()
pytest.importorskip("transformers", reason="transformers is not installed")


def halved(gm):
    """Half of each family is zero, in each other ZIGs."""
    partition = fx_oto.partition(gm)
    for i, family in enumerate(partition.families):
        order = torch.randperm(len(family), generator=torch.Generator().manual_seed(i))
        partition.zero_zigs_(i, order[: len(family) // 2])
    return gm


@pytest.fixture(scope="module")
def written():
    """The networks, written back."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns of
        for name, (_, _, _, inputs, unprunable, _) in pretrained.NETWORKS.items():
            model = pretrained.built(name)
            gm = halved(fx_oto.prepare(model, inputs, unprunable=unprunable))
            found[name] = fx_oto.compress(gm, into=model)
    return found


@pytest.fixture(scope="module")
def loaded(written, tmp_path_factory):
    """What the networks answer in another process, in which fx_oto cannot be imported."""
    folder = tmp_path_factory.mktemp("saved")
    for name, model in written.items():
        model.save_pretrained(folder / name)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-m", "support.pretrained", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "answers.pt")


@pytest.mark.parametrize("name", pretrained.NETWORKS)
def test_the_config_says_the_new_widths(written, name):
    report = fx_oto.WriteBack.of(written[name])
    report.check_config()
    assert {change.name for change in report.config} == pretrained.NETWORKS[name][-1]
    full = pretrained.built(name)
    assert all(getattr(full.config, change.name, None) == change.before for change in report.config)
    assert all(getattr(written[name].config, change.name) == change.after for change in report.config)


@pytest.mark.parametrize("name", pretrained.NETWORKS)
def test_from_pretrained_without_fx_oto_is_the_same_model(written, loaded, name):
    mine, theirs = pretrained.answers(name, written[name]), loaded[name]
    assert torch.equal(mine["logits"], theirs["logits"])
    assert mine["numbers"] == theirs["numbers"]
    if "text" in mine:
        assert torch.equal(mine["text"], theirs["text"])


@pytest.mark.parametrize("name", ["Bert", "Swin"])
def test_what_can_be_said_is_known_before(name):
    _, _, _, inputs, unprunable, settings = pretrained.NETWORKS[name]
    model = pretrained.built(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gm = fx_oto.prepare(model, inputs)
        limits = fx_oto.config_limits(gm, model)
    assert {setting for one in limits.tied if not one.reason for setting in one.settings} == settings
    families = fx_oto.partition(gm).families
    whole = {family.name for family in families if any(map(family.matches, unprunable))}
    assert whole == {family for one in limits.tied if one.reason for family in one.families}
    assert whole == {family.name for family in families if any(map(family.matches, limits.unprunable))}

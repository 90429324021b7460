"""Adapters of the real package peft: a frozen language model is pruned under them, then merged or compressed."""

from __future__ import annotations

import copy

import pytest
import torch
from support.vision import torchvision_models

import fx_oto

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that these packages look for
RANKS, STEPS, MIDDLE = ["*.lora_A.*"], 40, 8
TOKENS = torch.randint(0, 64, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make():
    """A small Llama with frozen weights, and adapters that are trained."""
    torchvision_models()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")

    def adapted():
        torch.manual_seed(0)
        widths = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
        settings = transformers.LlamaConfig(vocab_size=64, num_hidden_layers=2, use_cache=False, **widths)
        where = ["q_proj", "v_proj", "up_proj", "down_proj"]
        adapters = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=where)
        return peft.get_peft_model(transformers.LlamaForCausalLM(settings), adapters)

    return adapted


def inputs(tokens):
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def logits(model, tokens=TOKENS):
    return model.eval()(**inputs(tokens))["logits"]


def trained(model, kind, saved=None):
    """Train, from the beginning or from what was saved in the middle; returns what was."""
    gm = fx_oto.prepare(model, inputs(TOKENS[:2]), unprunable=RANKS)
    base = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    optimizer = getattr(fx_oto, kind)(gm, base, target_params=0.7, total_steps=STEPS, prune_frozen=True)
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(0 if saved is None else MIDDLE, STEPS):
        if step == MIDDLE and saved is None:
            saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        tokens = TOKENS.roll(step, 1)
        optimizer.zero_grad()
        model(**inputs(tokens), labels=tokens)["loss"].backward()
        optimizer.step()
    return gm, optimizer, saved


@pytest.mark.parametrize("kind", ["DHSPG", "HESSO"])
def test_a_frozen_model_is_pruned_under_adapters(make, kind):
    model, again = make(), make()
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    gm, optimizer, saved = trained(model, kind)
    trained(again, kind, saved)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert optimizer.reached()["params"] <= 0.7
    for name, parameter in model.named_parameters():
        if name in before:  # what is left of the frozen weights is what it was
            assert torch.equal(parameter[parameter != 0], before[name][parameter != 0])
    small, expected = fx_oto.compress(gm), logits(model)
    torch.testing.assert_close(logits(small), expected, rtol=1e-4, atol=1e-5)
    ranks = {name: p.size(0) for name, p in small.named_parameters() if "lora_A" in name}
    assert set(ranks.values()) == {4}

    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    compact = fx_oto.compress(fx_oto.prepare(merged, inputs(TOKENS[:2])))
    torch.testing.assert_close(logits(compact), expected, rtol=1e-4, atol=1e-5)
    left = sum(p.numel() for name, p in small.named_parameters() if "lora" not in name)
    assert sum(p.numel() for p in compact.parameters()) == left


def test_ranks_are_groups_if_they_are_not_left_out(make):
    gm = fx_oto.prepare(make(), inputs(TOKENS[:2]))
    ranks = [family for family in fx_oto.partition(gm).families if "lora_A" in family.name]
    assert [len(family) for family in ranks] == [4] * 8

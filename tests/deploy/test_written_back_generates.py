"""A language model that was written back generates what the full, group-sparse one does, with its cache."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.exactness import randomise
from support.vision import without_compiled_library

import fx_oto

without_compiled_library()
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    **SIZES,
}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))


def mixtral():
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**DECODER, **experts))


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=4, **SIZES)
    )


def t5():
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, **SIZES
    )
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize("build", [llama, mixtral, gpt2, t5])
def test_token_for_token(build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns of
        model = randomise(build().eval())
        tokens = torch.randint(3, 96, (2, 9))
        mask = torch.ones_like(tokens)
        mask[0, :4] = 0  # padded on the left
        inputs = {"input_ids": tokens, "attention_mask": mask}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(3, 96, (2, 5))
        gm = fx_oto.prepare(model, inputs)
        fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
        result = fx_oto.compress(gm, into=model)
        assert type(result) is type(model)
        assert not fx_oto.WriteBack.of(result).graphs
        assert sum(p.numel() for p in result.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())
        for options in ({"do_sample": False}, {"do_sample": True}):
            both = []
            for one in (model, result):
                torch.manual_seed(5)
                both.append(one.generate(tokens, attention_mask=mask, max_new_tokens=12, use_cache=True, **options))
            assert torch.equal(*both)

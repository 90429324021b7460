"""Networks of transformers, two small layers each: what matters here is their code, not their size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from networks import Built, Inputs
from torch import Generator, Tensor


@dataclass(frozen=True)
class Sizes:
    """Of what a network is given; images and signals, which each have their own, are stretched."""

    length: int = 11
    decoder: int = 7
    image: float = 1.0
    signal: float = 1.0


OTHERS = {
    "length": Sizes(length=17),
    "decoder length": Sizes(decoder=9),
    "image size": Sizes(image=1.5),
    "signal length": Sizes(signal=1.5),
}
Draw = Callable[[int, Generator, Sizes], dict[str, Tensor]]

VOCABULARY = 96
WIDTH = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**WIDTH, "vocab_size": VOCABULARY, "max_position_embeddings": 40}
DECODER = {**TEXT, **SPECIAL, "num_key_value_heads": 2, "use_cache": False}
VISION = {**WIDTH, "image_size": 32, "patch_size": 8}
IMAGE = {**VISION, "num_labels": 10}
STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
TWO_STACKS = {
    **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))},
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "d_model": 48,
    "use_cache": False,
}


def _ids(batch: int, generator: Generator, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def _padding(batch: int, length: int) -> Tensor:
    """The second row is three tokens shorter."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1:2, -3:] = 0
    return mask


def text(batch: int, generator: Generator, sizes: Sizes) -> dict[str, Tensor]:
    return {"input_ids": _ids(batch, generator, sizes.length), "attention_mask": _padding(batch, sizes.length)}


def tokens(batch: int, generator: Generator, sizes: Sizes) -> dict[str, Tensor]:
    return {"input_ids": _ids(batch, generator, sizes.length)}


def pairs(batch: int, generator: Generator, sizes: Sizes) -> dict[str, Tensor]:
    return {**text(batch, generator, sizes), "decoder_input_ids": _ids(batch, generator, sizes.decoder)}


def image(batch: int, generator: Generator, sizes: Sizes, size: int = 32) -> dict[str, Tensor]:
    side = int(sizes.image * size)
    return {"pixel_values": torch.randn(batch, 3, side, side, generator=generator)}


def large_image(batch: int, generator: Generator, sizes: Sizes) -> dict[str, Tensor]:
    return image(batch, generator, sizes, 64)


def signal(batch: int, generator: Generator, sizes: Sizes) -> dict[str, Tensor]:
    return {"input_values": torch.randn(batch, int(sizes.signal * 800), generator=generator)}


def speech(batch: int, generator: Generator, sizes: Sizes) -> dict[str, Tensor]:
    features = torch.randn(batch, 16, int(sizes.signal * 60), generator=generator)
    return {"input_features": features, "decoder_input_ids": _ids(batch, generator, sizes.decoder)}


def captions(batch: int, generator: Generator, sizes: Sizes) -> dict[str, Tensor]:
    drawn = text(batch, generator, sizes)
    drawn["input_ids"][:, -1] = SPECIAL["eos_token_id"]  # pooled at the end of the text
    return {**drawn, **image(batch, generator, sizes)}


@dataclass(frozen=True)
class Spec:
    """``prefix`` + ``Config`` and ``prefix`` + ``head`` are classes of transformers."""

    prefix: str
    head: str
    options: dict[str, Any]
    draw: Draw
    nested: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)


CLASSIFIER, CAUSAL, IMAGES = "ForSequenceClassification", "ForCausalLM", "ForImageClassification"
TOWERS = {
    "text_config": {**WIDTH, **SPECIAL, "vocab_size": VOCABULARY, "max_position_embeddings": 40},
    "vision_config": VISION,
}
RESNET = {"embedding_size": 16, **STAGES, "layer_type": "bottleneck"}

SPECS = {
    "bert": Spec("Bert", CLASSIFIER, TEXT, text),
    "bert_mlm": Spec("Bert", "ForMaskedLM", TEXT, text),
    "roberta": Spec("Roberta", CLASSIFIER, TEXT, text),
    "distilbert": Spec(
        "DistilBert",
        CLASSIFIER,
        {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": VOCABULARY},
        text,
    ),
    "electra": Spec("Electra", CLASSIFIER, {**TEXT, "embedding_size": 24}, text),
    "albert": Spec("Albert", CLASSIFIER, {**TEXT, "embedding_size": 24}, text),
    "deberta_v2": Spec(
        "DebertaV2",
        CLASSIFIER,
        {
            **TEXT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "share_att_key": True,
            "position_biased_input": False,
            "norm_rel_ebd": "layer_norm",
        },
        text,
    ),
    "gpt2": Spec(
        "GPT2",
        "LMHeadModel",
        {"vocab_size": VOCABULARY, "n_positions": 40, "n_embd": 48, "n_layer": 2, "n_head": 4, "use_cache": False},
        text,
    ),
    "gpt_neo": Spec(
        "GPTNeo",
        CAUSAL,
        {
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 40,
            "hidden_size": 48,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "use_cache": False,
        },
        text,
    ),
    "opt": Spec("OPT", CAUSAL, {**TEXT, "ffn_dim": 96, "word_embed_proj_dim": 48, "use_cache": False}, text),
    "llama": Spec("Llama", CAUSAL, DECODER, text),
    "llama_unpadded": Spec("Llama", CAUSAL, DECODER, tokens),
    "mistral": Spec("Mistral", CAUSAL, {**DECODER, "sliding_window": 8}, text),
    "qwen2": Spec("Qwen2", CAUSAL, DECODER, text),
    "qwen3": Spec("Qwen3", CAUSAL, {**DECODER, "head_dim": 12}, text),
    "gemma": Spec("Gemma", CAUSAL, {**DECODER, "head_dim": 12}, text),
    "phi": Spec("Phi", CAUSAL, DECODER, text),
    "phi3": Spec("Phi3", CAUSAL, DECODER, text),
    "mixtral": Spec("Mixtral", CAUSAL, {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}, text),
    "mamba": Spec(
        "Mamba",
        CAUSAL,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "state_size": 8,
            "num_hidden_layers": 2,
            "use_cache": False,
            "use_mambapy": False,
        },
        tokens,
    ),
    "t5": Spec(
        "T5",
        "ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "d_kv": 12,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
            "use_cache": False,
            "decoder_start_token_id": 0,
        },
        pairs,
    ),
    "bart": Spec(
        "Bart",
        "ForConditionalGeneration",
        {**TWO_STACKS, "vocab_size": VOCABULARY, "max_position_embeddings": 40},
        pairs,
    ),
    "whisper": Spec(
        "Whisper",
        "ForConditionalGeneration",
        {
            **TWO_STACKS,
            **SPECIAL,
            "vocab_size": VOCABULARY,
            "num_mel_bins": 16,
            "decoder_start_token_id": 1,
            "max_source_positions": 30,
            "max_target_positions": 40,
        },
        speech,
    ),
    "wav2vec2": Spec(
        "Wav2Vec2",
        "ForCTC",
        {
            **WIDTH,
            "vocab_size": 32,
            "conv_dim": [24, 24, 24],
            "conv_stride": [5, 2, 2],
            "conv_kernel": [10, 3, 3],
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        signal,
    ),
    "vit": Spec("ViT", IMAGES, IMAGE, image),
    "deit": Spec("DeiT", IMAGES, IMAGE, image),
    "beit": Spec("Beit", IMAGES, {**IMAGE, "use_relative_position_bias": True}, image),
    "dinov2": Spec("Dinov2", IMAGES, IMAGE, image),
    "swin": Spec(
        "Swin",
        IMAGES,
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "num_labels": 10,
        },
        large_image,
    ),
    "segformer": Spec(
        "Segformer",
        "ForSemanticSegmentation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 32,
            "num_labels": 10,
        },
        large_image,
    ),
    "convnext": Spec("ConvNext", IMAGES, {**STAGES, "num_labels": 10}, large_image),
    "resnet": Spec("ResNet", IMAGES, {**RESNET, "num_labels": 10}, large_image),
    "detr": Spec(
        "Detr",
        "ForObjectDetection",
        {
            **TWO_STACKS,
            "num_queries": 5,
            "num_labels": 10,
            "backbone": None,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
        },
        large_image,
        {"backbone_config": ("ResNet", {**RESNET, "out_features": ["stage4"]})},
    ),
    "clip": Spec("CLIP", "Model", {**TOWERS, "projection_dim": 24}, captions),
    "siglip": Spec("Siglip", "Model", TOWERS, captions),
}


def names() -> list[str]:
    return list(SPECS)


def build(name: str) -> Built:
    """With scaled_dot_product_attention where the network has it."""
    spec = SPECS[name]
    nested = {key: _config(prefix, options) for key, (prefix, options) in spec.nested.items()}
    config = _config(spec.prefix, {**spec.options, **nested})
    kind = getattr(transformers, spec.prefix + spec.head)
    try:
        model = kind._from_config(config, attn_implementation="sdpa")
    except (ValueError, ImportError):
        model = kind._from_config(config, attn_implementation="eager")
    example = _inputs(spec.draw, Sizes())
    others = {kind: _inputs(spec.draw, sizes) for kind, sizes in OTHERS.items()}
    return Built(model, example, {kind: (one,) for kind, one in others.items() if _shapes(one) != _shapes(example)})


def _config(prefix: str, options: dict[str, Any]) -> Any:
    return getattr(transformers, f"{prefix}Config")(**options)


def _inputs(draw: Draw, sizes: Sizes) -> Inputs:
    return lambda batch, seed: ((), draw(batch, torch.Generator().manual_seed(seed), sizes))


def _shapes(inputs: Inputs) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in inputs(2, 0)[1].items()}

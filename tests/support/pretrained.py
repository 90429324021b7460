"""Small transformers, what they take, and the process that loads what was saved of them, without fx_oto."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from support.vision import without_compiled_library

TOKENS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))
VOCABULARY = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "use_cache": False}
DECODED = {"decoder_input_ids": TOKENS[:, :5], "use_cache": False}
IMAGES = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 48}
_LLAMA = WIDTHS | VOCABULARY | {"num_key_value_heads": 4}
_LLAMAS = ("Llama", "Qwen2", "Mistral", "Gemma")
# Of each: the class of its models, that of transformers' that finds it by its config, settings, inputs, what must stay
# whole, and the settings that follow from what is pruned.
NETWORKS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], list[str], set[str]]] = {
    **{
        name: (
            f"{name}ForCausalLM",
            "AutoModelForCausalLM",
            _LLAMA | ({"head_dim": 4} if name == "Gemma" else {}),
            TEXT,
            ["model.embed_tokens"],
            {"intermediate_size", "num_attention_heads", "num_key_value_heads"}
            | ({"head_dim"} if name in ("Qwen2", "Mistral") else set()),  # left out as long as heads fill the width
        )
        for name in _LLAMAS
    },
    "GPT2": (
        "GPT2LMHeadModel",
        "AutoModelForCausalLM",
        {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4} | VOCABULARY,
        TEXT,
        ["transformer.wte", "*.attn"],
        {"n_inner"},
    ),
    "T5": (
        "T5ForConditionalGeneration",
        "AutoModelForSeq2SeqLM",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        | VOCABULARY,
        TEXT | DECODED,
        [],
        {"d_ff", "num_heads"},
    ),
    "Bert": (
        "BertForSequenceClassification",
        "AutoModelForSequenceClassification",
        WIDTHS | VOCABULARY,
        {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)},
        ["bert.embeddings", "*.attention", "bert.pooler"],
        {"intermediate_size"},
    ),
    **{
        name: (
            f"{name}ForImageClassification",
            "AutoModelForImageClassification",
            WIDTHS | {"image_size": 32, "patch_size": 8},
            IMAGES,
            ["*.embeddings", "*.attention"],
            {"intermediate_size"},
        )
        for name in ("ViT", "DeiT")
    },
    "Swin": (
        "SwinForImageClassification",
        "AutoModelForImageClassification",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        IMAGES,
        ["*.embeddings", "*.attention", "*.downsample", "swin.encoder.layers.1.blocks.0.output"],
        {"mlp_ratio"},
    ),
    "Whisper": (
        "WhisperForConditionalGeneration",
        "AutoModelForSpeechSeq2Seq",
        {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
         (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}
        | {"d_model": 32, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 30}
        | {"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None} | VOCABULARY,
        {"input_features": torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(0))} | DECODED,
        ["*embed_tokens", "*_attn", "*.conv1", "*.conv2"],
        {"encoder_ffn_dim", "decoder_ffn_dim"},
    ),
}  # fmt: skip


def built(name: str) -> Any:
    """A network with random weights."""
    import transformers

    kind, _, settings, *_ = NETWORKS[name]
    torch.manual_seed(1)
    model = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # those of norms stay about 1
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def answers(name: str, model: Any) -> dict[str, Any]:
    """What a network returns, what it generates, and all numbers that its modules hold.

    On one thread: sums over several are the same, bit for bit, in one process only.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _answers(NETWORKS[name][3], "AutoModelForCausalLM" in NETWORKS[name] or name == "T5", model)
    finally:
        torch.set_num_threads(threads)


def _answers(inputs: Any, writes: bool, model: Any) -> dict[str, Any]:
    found = {"logits": model(**inputs).logits, "numbers": numbers(model)}
    if writes:
        mask = torch.ones_like(TOKENS)
        mask[0, :4] = 0  # padded on the left
        found["text"] = model.generate(TOKENS, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=True)
    return found


def numbers(model: Any) -> dict[str, Any]:
    """The numbers that modules hold, and those of the configuration."""
    held = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, float, tuple)
    }
    config = {f"config.{name}": value for name, value in vars(model.config).items() if type(value) in (int, float)}
    return held | config


def main(folder: Path) -> None:
    """Load all that was saved in a folder."""
    import transformers

    saved = sorted(path.name for path in folder.iterdir() if path.is_dir())
    torch.save(
        {
            name: answers(name, getattr(transformers, NETWORKS[name][1]).from_pretrained(folder / name))
            for name in saved
        },
        folder / "answers.pt",
    )


if __name__ == "__main__":
    sys.modules["fx_oto"] = None  # type: ignore[assignment] - importing it fails
    without_compiled_library()
    main(Path(sys.argv[1]))

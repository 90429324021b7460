"""Networks of packages that nobody here wrote, small ones of each kind; a name is ``package/network``.

    pip install --no-deps pytorchcv spandrel vit-pytorch x-transformers segmentation-models-pytorch monai diffusers \
        open-clip-torch dynamic-network-architectures rtdl-revisiting-models torch-geometric efficientnet-pytorch \
        linformer pytorch-tabnet kornia ultralytics perceiver-pytorch performer-pytorch conformer resnest \
        denoising-diffusion-pytorch vector-quantize-pytorch g-mlp-pytorch mlp-mixer-pytorch facenet-pytorch \
        pretrainedmodels asteroid tsai braindecode torchaudio openunmix lpips pytorchvideo compressai

Others: the other files named ``…_packages``. Those that are not installed are left out. What they import besides torch
must be there, too.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from field_packages import FIELDS
from image_packages import ON_IMAGES
from making import TOKENS, Make, called_with, dense, dice_of, many, of_class, on_images, tokens
from more_packages import MORE
from networks import Built, Call, Inputs
from signal_packages import SIGNALS
from torch import nn


def names() -> list[str]:
    return [f"{package}/{name}" for package, (module, made) in PACKAGES.items() if _is_there(module) for name in made]


def build(name: str) -> Built:
    package, _, network = name.partition("/")
    module, made = PACKAGES[package]
    torch.manual_seed(0)
    return made[network](module)


def _is_there(module: str) -> bool:
    return find_spec(module.partition(".")[0]) is not None


# --- x-transformers ---------------------------------------------------------------------------------------------------


def _language(**options: Any) -> Make:
    def make(package: Any) -> nn.Module:
        layers = package.Decoder(dim=48, depth=2, heads=3, attn_dim_head=16, **options)
        return package.TransformerWrapper(num_tokens=TOKENS, max_seq_len=32, attn_layers=layers)

    return called_with(make, partial(tokens, 12), length=partial(tokens, 19))


def _translation(package: Any) -> nn.Module:
    return package.XTransformer(
        dim=48,
        enc_num_tokens=TOKENS,
        enc_depth=2,
        enc_heads=3,
        enc_max_seq_len=32,
        dec_num_tokens=TOKENS,
        dec_depth=2,
        dec_heads=3,
        dec_max_seq_len=32,
    )


def _pair(length: int, other: int, batch: int, seed: int) -> Call:
    return (*tokens(length, batch, seed)[0], *tokens(other, batch, seed + 1)[0]), {}


X_TRANSFORMERS = {
    "alibi": _language(alibi_pos_bias=True),
    "dynamic_bias": _language(dynamic_pos_bias=True),
    "gated_residual": _language(gate_residual=True),
    "glu": _language(ff_glu=True, ff_swish=True, ff_no_bias=True),
    "grouped_queries": _language(attn_kv_heads=1, rotary_pos_emb=True),
    "macaron": _language(macaron=True),
    "plain": _language(),
    "post_norm": _language(pre_norm=False),
    "qk_norm": _language(attn_qk_norm=True),
    "rel_pos_bias": _language(rel_pos_bias=True),
    "residual_attention": _language(residual_attn=True),
    "rmsnorm_rotary": _language(use_rmsnorm=True, rotary_pos_emb=True),
    "sandwich": _language(sandwich_coef=1),
    "scalenorm": _language(use_scalenorm=True),
    "shift_tokens": _language(shift_tokens=1),
    "talking_heads": _language(attn_pre_talking_heads=True),
    "translation": called_with(_translation, partial(_pair, 12, 9), length=partial(_pair, 15, 11)),
    "value_residual": _language(add_value_residual=True),
    "vision": on_images(
        lambda package: package.ViTransformerWrapper(
            image_size=32,
            patch_size=8,
            num_classes=10,
            attn_layers=package.Encoder(dim=48, depth=2, heads=3, attn_dim_head=16),
        ),
        *(3, 32, 32),
    ),
}

# --- monai ------------------------------------------------------------------------------------------------------------

_PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_LEVELS = {"channels": (8, 16, 32), "strides": (2, 2)}
_DIFFUSION = {"channels": (16, 32), "attention_levels": (False, True), "norm_num_groups": 8, "num_res_blocks": 1}
MONAI = {
    "AttentionUnet": of_class("networks.nets:AttentionUnet", 1, 32, 32, **_PLANE, **_LEVELS),
    "AutoencoderKL": of_class("networks.nets:AutoencoderKL", 1, 32, 32, **{**_PLANE, "out_channels": 1}, **_DIFFUSION),
    "BasicUNet": of_class("networks.nets:BasicUNet", 1, 32, 32, **_PLANE, features=(8, 8, 16, 16, 32, 8)),
    "BasicUNetPlusPlus": of_class(
        "networks.nets:BasicUNetPlusPlus", 1, 32, 32, **_PLANE, features=(8, 8, 16, 16, 32, 8)
    ),
    "DecoderOnlyTransformer": called_with(
        lambda package: import_module("monai.networks.nets").DecoderOnlyTransformer(TOKENS, 32, 48, 2, 3),
        partial(tokens, 12),
        length=partial(tokens, 19),
    ),
    "DiffusionModelUNet": called_with(
        lambda package: import_module("monai.networks.nets").DiffusionModelUNet(
            **{**_PLANE, "out_channels": 1}, **_DIFFUSION, num_head_channels=8
        ),
        partial(many, ((1, 16, 16), 100)),
        image_size=partial(many, ((1, 24, 32), 100)),
    ),
    "DynUNet": of_class(
        "networks.nets:DynUNet",
        *(1, 32, 32),
        **_PLANE,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[8, 16, 32],
    ),
    "HighResNet": of_class("networks.nets:HighResNet", 1, 32, 32, **_PLANE),
    "MedNeXt": of_class("networks.nets:MedNeXt", 1, 32, 32, **_PLANE, init_filters=8),
    "SegResNet": of_class("networks.nets:SegResNet", 1, 32, 32, **_PLANE, init_filters=16),
    "SwinUNETR": of_class(
        "networks.nets:SwinUNETR", 1, 64, 64, **_PLANE, feature_size=12, depths=(1, 1, 1, 1), norm_name="instance"
    ),
    "UNETR": of_class(
        "networks.nets:UNETR",
        *(1, 32, 32),
        **_PLANE,
        img_size=32,
        feature_size=8,
        hidden_size=48,
        mlp_dim=96,
        num_heads=3,
    ),
    "UNet": of_class("networks.nets:UNet", 1, 32, 32, **_PLANE, **_LEVELS, num_res_units=2),
    "UNet_3d": of_class("networks.nets:UNet", 1, 16, 16, 16, **{**_PLANE, "spatial_dims": 3}, **_LEVELS, norm="batch"),
    "VNet": of_class("networks.nets:VNet", 1, 32, 32, **_PLANE, dropout_prob_down=0.0, dropout_prob_up=(0.0, 0.0)),
}

# --- diffusers --------------------------------------------------------------------------------------------------------

_BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}


def _diffuser(kind: str, inputs: Inputs, other: Inputs | None = None, **options: Any) -> Make:
    others = {} if other is None else {"image_size": other}
    return called_with(lambda package: getattr(package, kind)(**options), inputs, **others)


def _conditioned(side: int, width: int, batch: int, seed: int) -> Call:
    (image, time, text), _ = many(((4, side, side), 100, (7, width)), batch, seed)
    return (image, time), {"encoder_hidden_states": text}


def _joint(batch: int, seed: int) -> Call:
    (image, time, text, pooled), _ = many(((4, 8, 8), 100, (7, 32), (32,)), batch, seed)
    return (image,), {"encoder_hidden_states": text, "pooled_projections": pooled, "timestep": time}


DIFFUSERS = {
    "AutoencoderKL": _diffuser(
        "AutoencoderKL",
        partial(dense, (3, 32, 32)),
        partial(dense, (3, 48, 32)),
        **_BLOCKS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "AutoencoderTiny": _diffuser(
        "AutoencoderTiny",
        partial(dense, (3, 32, 32)),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "DiT": _diffuser(
        "DiTTransformer2DModel",
        lambda batch, seed: (
            (dense((4, 8, 8), batch, seed)[0][0],),
            {"timestep": torch.arange(batch), "class_labels": torch.arange(batch) % 5},
        ),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    ),
    "SD3": _diffuser(
        "SD3Transformer2DModel",
        _joint,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    ),
    "UNet1D": _diffuser(
        "UNet1DModel",
        partial(many, ((4, 32), 100)),
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownResnetBlock1D",) * 2,
        up_block_types=("UpResnetBlock1D",) * 2,
        mid_block_type="MidResTemporalBlock1D",
        use_timestep_embedding=True,
        time_embedding_type="positional",
        out_block_type="OutConv1DBlock",
        flip_sin_to_cos=False,
        act_fn="swish",
        extra_in_channels=0,
    ),
    "UNet2D": _diffuser(
        "UNet2DModel",
        partial(many, ((3, 16, 16), 100)),
        partial(many, ((3, 24, 32), 100)),
        **_BLOCKS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ),
    "UNet2DCondition": _diffuser(
        "UNet2DConditionModel",
        partial(_conditioned, 16, 24),
        partial(_conditioned, 24, 24),
        **_BLOCKS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
    ),
    "VQModel": _diffuser(
        "VQModel", partial(dense, (3, 16, 16)), norm_num_groups=8, block_out_channels=(16,), num_vq_embeddings=32
    ),
}

# --- others -----------------------------------------------------------------------------------------------------------


def _clip(**vision: Any) -> Make:
    def make(package: Any) -> nn.Module:
        text = {"context_length": 16, "vocab_size": TOKENS, "width": 48, "heads": 3, "layers": 2}
        kind = import_module("open_clip.model").CLIP
        return kind(embed_dim=32, vision_cfg={"image_size": 32, **vision}, text_cfg=text)

    def inputs(batch: int, seed: int) -> Call:
        return (dense((3, 32, 32), batch, seed)[0][0], tokens(16, batch, seed)[0][0]), {}

    return called_with(make, inputs)


OPEN_CLIP = {
    "resnet": _clip(layers=(1, 1, 1, 1), width=16, patch_size=None),
    "vit": _clip(layers=2, width=48, head_width=16, patch_size=8),
    "vit_pooled": _clip(layers=2, width=48, head_width=16, patch_size=8, pool_type="avg", ls_init_value=0.1),
}

_UNET = {
    "input_channels": 1,
    "n_stages": 3,
    "features_per_stage": (8, 16, 32),
    "conv_op": nn.Conv2d,
    "kernel_sizes": 3,
    "strides": (1, 2, 2),
    "num_classes": 2,
    "n_conv_per_stage_decoder": 1,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm2d,
    "norm_op_kwargs": {"affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
}
DYNAMIC = {
    "PlainConvUNet": of_class("architectures.unet:PlainConvUNet", 1, 32, 32, n_conv_per_stage=2, **_UNET),
    "ResidualEncoderUNet": of_class("architectures.unet:ResidualEncoderUNet", 1, 32, 32, n_blocks_per_stage=1, **_UNET),
}

_TABLE = partial(dense, (12,))
RTDL = {
    "FTTransformer": called_with(
        lambda package: package.FTTransformer(
            n_cont_features=12,
            cat_cardinalities=[],
            d_out=3,
            n_blocks=2,
            d_block=48,
            attention_n_heads=3,
            attention_dropout=0.1,
            ffn_d_hidden_multiplier=4 / 3,
            ffn_dropout=0.1,
            residual_dropout=0.0,
        ),
        lambda batch, seed: ((*_TABLE(batch, seed)[0], None), {}),
    ),
    "MLP": called_with(lambda package: package.MLP(d_in=12, d_out=3, n_blocks=3, d_block=48, dropout=0.1), _TABLE),
    "ResNet": called_with(
        lambda package: package.ResNet(
            d_in=12, d_out=3, n_blocks=2, d_block=48, d_hidden=None, d_hidden_multiplier=2.0, dropout1=0.1, dropout2=0.0
        ),
        _TABLE,
    ),
}


def _graph(batch: int, seed: int) -> Call:
    """Nodes of as many graphs, as one graph, and its edges."""
    nodes, dice = 6 * batch, dice_of(seed)
    edges = torch.randint(0, nodes, (2, 4 * nodes), generator=dice)
    return (torch.randn(nodes, 12, generator=dice), edges), {}


def _of_graphs(kind: str, **options: Any) -> Make:
    def make(package: Any) -> nn.Module:
        return getattr(import_module("torch_geometric.nn.models"), kind)(12, 48, 2, out_channels=5, **options)

    return called_with(make, _graph)


GEOMETRIC = {
    "EdgeCNN": _of_graphs("EdgeCNN"),
    "GAT": _of_graphs("GAT", heads=3),
    "GATv2": _of_graphs("GAT", v2=True, heads=3),
    "GCN": _of_graphs("GCN"),
    "GIN": _of_graphs("GIN"),
    "GraphSAGE": _of_graphs("GraphSAGE", norm="layer"),
    "GraphSAGE_knowledge": _of_graphs("GraphSAGE", jk="cat"),
}

PACKAGES: dict[str, tuple[str, dict[str, Make]]] = {
    "diffusers": ("diffusers", DIFFUSERS),
    "dynamic-network-architectures": ("dynamic_network_architectures", DYNAMIC),
    "efficientnet-pytorch": (
        "efficientnet_pytorch",
        {"b0": on_images(lambda package: package.EfficientNet.from_name("efficientnet-b0"), 3, 64, 64)},
    ),
    "kornia": (
        "kornia",
        {
            "TinyViT": of_class(
                "contrib:TinyViT",
                *(3, 64, 64),
                img_size=64,
                num_classes=10,
                embed_dims=[16, 32, 48, 64],
                depths=[1, 1, 1, 1],
                num_heads=[1, 2, 3, 4],
                window_sizes=[4, 4, 4, 2],
            ),
        },
    ),
    "linformer": (
        "linformer",
        {"lm": called_with(lambda package: package.LinformerLM(TOKENS, 48, 16, 2, heads=3, k=8), partial(tokens, 16))},
    ),
    "monai": ("monai", MONAI),
    "open-clip": ("open_clip", OPEN_CLIP),
    "pytorch-tabnet": (
        "pytorch_tabnet",
        {
            "TabNet": called_with(
                lambda package: import_module("pytorch_tabnet.tab_network").TabNetNoEmbeddings(12, 3), _TABLE
            )
        },
    ),
    "rtdl": ("rtdl_revisiting_models", RTDL),
    "torch-geometric": ("torch_geometric", GEOMETRIC),
    "x-transformers": ("x_transformers", X_TRANSFORMERS),
}
PACKAGES |= FIELDS | ON_IMAGES | MORE | SIGNALS

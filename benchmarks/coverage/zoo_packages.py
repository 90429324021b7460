"""Networks of packages that nobody here wrote, small ones of each kind; a name is ``package/network``.

    pip install --no-deps pytorchcv spandrel vit-pytorch x-transformers segmentation-models-pytorch monai diffusers \
        open-clip-torch dynamic-network-architectures rtdl-revisiting-models torch-geometric efficientnet-pytorch \
        linformer pytorch-tabnet kornia ultralytics perceiver-pytorch performer-pytorch conformer resnest \
        denoising-diffusion-pytorch vector-quantize-pytorch g-mlp-pytorch mlp-mixer-pytorch facenet-pytorch \
        pretrainedmodels asteroid tsai

Those that are not installed are left out. What they import besides torch must be there, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from making import TOKENS, Make, called_with, dense, dice_of, many, of_class, on_images, tokens
from more_packages import MORE
from networks import Built, Call, Inputs
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


# --- pytorchcv --------------------------------------------------------------------------------------------------------


def _pytorchcv(name: str, *shape: int) -> Make:
    return on_images(lambda package: package.get_model(name, pretrained=False), *(shape or (3, 224, 224)))


def _condensed(package: Any) -> nn.Module:
    """With inputs that its layers have chosen, as training does; before, each has the first one many times."""
    network: nn.Module = package.get_model("condensenet74_c4_g4", pretrained=False)
    for name, chosen in network.named_buffers():
        if name.endswith("index"):
            chosen.copy_(torch.randperm(len(chosen)))
    return network


_SMALL_CIFAR = ("diaresnet20", "preresnet20", "resnet20", "seresnet20", "shakedropresnet20", "xdensenet40_2_k24_bc")
PYTORCHCV = {f"{name}_cifar10": _pytorchcv(f"{name}_cifar10", 3, 32, 32) for name in _SMALL_CIFAR} | {
    name: _pytorchcv(name)
    for name in (
        "airnet50_1x64d_r2",
        "bagnet9",
        "bn_vgg11b",
        "cbam_resnet18",
        "dicenet_wd5",
        "dla34",
        "espnetv2_wd2",
        "fdmobilenet_wd4",
        "hardnet39ds",
        "ibn_resnet50",
        "igcv3_wd4",
        "menet108_8x1_g3",
        "mixnet_s",
        "mnasnet_small",
        "msdnet22",
        "octresnet10_ad2",
        "peleenet",
        "proxylessnas_cpu",
        "resattnet56",
        "resnesta18",
        "selecsls42",
        "shufflenet_g1_wd4",
        "sknet50",
        "spnasnet",
        "sqnxt23_w1",
        "vovnet27s",
        "zfnet",
    )
}
PYTORCHCV["condensenet74_c4_g4"] = on_images(_condensed, 3, 224, 224)

# --- vit-pytorch ------------------------------------------------------------------------------------------------------

_VIT = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 48, "depth": 2, "heads": 3, "mlp_dim": 96}
_HEADS = {"dim_head": 16}
VIT_PYTORCH = {
    "cait": of_class("cait:CaiT", 3, 32, 32, cls_depth=2, **_VIT, **_HEADS),
    "cct": of_class(
        "cct:CCT",
        *(3, 32, 32),
        img_size=32,
        embedding_dim=48,
        num_layers=2,
        num_heads=3,
        mlp_ratio=2.0,
        num_classes=10,
        positional_embedding="learnable",
    ),
    "cross_vit": of_class(
        "cross_vit:CrossViT",
        *(3, 48, 48),
        image_size=48,
        num_classes=10,
        sm_dim=32,
        lg_dim=48,
        sm_enc_heads=2,
        lg_enc_heads=2,
        cross_attn_heads=2,
        sm_enc_mlp_dim=64,
        lg_enc_mlp_dim=64,
        lg_enc_depth=2,
        depth=2,
    ),
    "crossformer": of_class(
        "crossformer:CrossFormer", 3, 224, 224, dim=(32, 32, 64, 64), depth=(1, 1, 1, 1), num_classes=10
    ),
    "cvt": of_class(
        "cvt:CvT", 3, 64, 64, num_classes=10, s1_emb_dim=16, s2_emb_dim=32, s3_emb_dim=48, s3_depth=2, s3_heads=3
    ),
    "deepvit": of_class("deepvit:DeepViT", 3, 32, 32, **_VIT, **_HEADS),
    "jumbo_vit": of_class("jumbo_vit:JumboViT", 3, 32, 32, **_VIT, **_HEADS),
    "keel_post_ln": of_class("vit_with_keel_post_ln:ViT", 3, 32, 32, **_VIT, **_HEADS),
    "levit": of_class(
        "levit:LeViT",
        3,
        64,
        64,
        image_size=64,
        num_classes=10,
        stages=2,
        dim=(32, 48),
        depth=1,
        heads=(2, 3),
        mlp_mult=2,
    ),
    "look_vit": of_class(
        "look_vit:LookViT", 3, 48, 48, image_size=48, num_classes=10, dim=48, depth=2, heads=3, dim_head=16
    ),
    "max_vit": of_class(
        "max_vit:MaxViT", 3, 112, 112, num_classes=10, dim=32, dim_conv_stem=16, depth=(1, 1), dim_head=16
    ),
    "mobile_vit": of_class(
        "mobile_vit:MobileViT",
        *(3, 64, 64),
        image_size=(64, 64),
        dims=[32, 40, 48],
        channels=[8, 16, 24, 24, 32, 32, 40, 40, 48, 48, 64],
        num_classes=10,
    ),
    "nest": of_class(
        "nest:NesT",
        3,
        32,
        32,
        image_size=32,
        patch_size=4,
        dim=32,
        heads=2,
        num_hierarchies=2,
        block_repeats=(1, 1),
        num_classes=10,
    ),
    "normalized_vit": of_class("normalized_vit:nViT", 3, 32, 32, **_VIT, **_HEADS),
    "parallel_vit": of_class("parallel_vit:ViT", 3, 32, 32, **_VIT, **_HEADS),
    "patch_merger": of_class("vit_with_patch_merger:ViT", 3, 32, 32, **_VIT, **_HEADS),
    "pit": of_class("pit:PiT", 3, 32, 32, **{**_VIT, "depth": (1, 1)}, **_HEADS),
    "register_tokens": of_class("simple_vit_with_register_tokens:SimpleViT", 3, 32, 32, **_VIT, **_HEADS),
    "regionvit": of_class("regionvit:RegionViT", 3, 224, 224, dim=(16, 32, 48, 64), depth=(1, 1, 1, 1), num_classes=10),
    "rvt": of_class("rvt:RvT", 3, 32, 32, **_VIT, **_HEADS),
    "scalable_vit": of_class(
        "scalable_vit:ScalableViT",
        *(3, 64, 64),
        num_classes=10,
        dim=32,
        heads=(2, 2, 2, 2),
        depth=(1, 1, 1, 1),
        reduction_factor=(8, 4, 2, 1),
        window_size=(8, 4, None, None),
    ),
    "sep_vit": of_class("sep_vit:SepViT", 3, 224, 224, num_classes=10, dim=16, depth=(1, 1, 1, 1), heads=(1, 2, 4, 8)),
    "simple_uvit": of_class("simple_uvit:SimpleUViT", 3, 32, 32, **_VIT, **_HEADS),
    "simple_vit": of_class("simple_vit:SimpleViT", 3, 32, 32, **_VIT, **_HEADS),
    "small_dataset": of_class("vit_for_small_dataset:ViT", 3, 32, 32, **_VIT, **_HEADS),
    "t2t": of_class(
        "t2t:T2TViT", 3, 64, 64, image_size=64, num_classes=10, dim=48, depth=2, heads=3, mlp_dim=96, dim_head=16
    ),
    "twins_svt": of_class(
        "twins_svt:TwinsSVT",
        *(3, 224, 224),
        num_classes=10,
        s1_emb_dim=16,
        s2_emb_dim=32,
        s3_emb_dim=48,
        s4_emb_dim=64,
        s3_depth=1,
        s4_depth=1,
    ),
    "vit": of_class("vit:ViT", 3, 32, 32, **_VIT, **_HEADS),
    "xcit": of_class("xcit:XCiT", 3, 32, 32, cls_depth=1, **_VIT, **_HEADS),
}

# --- spandrel: restoration and super-resolution -----------------------------------------------------------------------

SPANDREL = {
    "ATD": of_class(
        "ATD.__arch.atd_arch:ATD",
        *(3, 32, 32),
        embed_dim=24,
        depths=(2,),
        num_heads=(2,),
        window_size=8,
        num_tokens=8,
        reducted_dim=4,
        category_size=16,
        upscale=2,
        upsampler="pixelshuffledirect",
    ),
    "CRAFT": of_class("CRAFT.__arch.CRAFT:CRAFT", 3, 32, 32, embed_dim=24, depths=(1, 1), num_heads=(2, 2)),
    "Compact": of_class("Compact.__arch.SRVGG:SRVGGNetCompact", 3, 24, 24, num_feat=16, num_conv=4, upscale=2),
    "DAT": of_class(
        "DAT.__arch.DAT:DAT", 3, 32, 32, embed_dim=24, depth=[2], num_heads=[2], split_size=[8, 8], expansion_factor=2.0
    ),
    "DRUNet": of_class("DRUNet.__arch.network_unet:DRUNet", 3, 32, 32, in_nc=3, nc=(8, 16, 24, 32), nb=1),
    "ESRGAN": of_class("ESRGAN.__arch.RRDB:RRDBNet", 3, 24, 24, in_nc=3, out_nc=3, num_filters=16, num_blocks=2),
    "HAT": of_class(
        "HAT.__arch.HAT:HAT",
        *(3, 32, 32),
        img_size=32,
        embed_dim=24,
        depths=(2,),
        num_heads=(2,),
        window_size=8,
        compress_ratio=3,
        squeeze_factor=4,
        upscale=2,
        upsampler="pixelshuffle",
    ),
    "KBNet": of_class(
        "KBNet.__arch.kbnet_s:KBNet_s", 3, 32, 32, width=16, enc_blk_nums=(1, 1), dec_blk_nums=(1, 1), middle_blk_num=1
    ),
    "MixDehazeNet": of_class(
        "MixDehazeNet.__arch.MixDehazeNet:MixDehazeNet",
        3,
        64,
        64,
        embed_dims=[8, 16, 24, 16, 8],
        depths=[1, 1, 1, 1, 1],
    ),
    "MoSR": of_class("MoSR.__arch.mosr_arch:MoSR", 3, 24, 24, upscale=2, n_block=2, dim=16),
    "NAFNet": of_class(
        "NAFNet.__arch.NAFNet_arch:NAFNet", 3, 32, 32, width=16, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]
    ),
    "OmniSR": of_class("OmniSR.__arch.OmniSR:OmniSR", 3, 32, 32, num_feat=16, res_num=1, up_scale=2),
    "PLKSR": of_class("PLKSR.__arch.PLKSR:PLKSR", 3, 24, 24, dim=16, n_blocks=2, upscaling_factor=2),
    "RCAN": of_class(
        "RCAN.__arch.rcan_arch:RCAN", 3, 24, 24, n_feats=16, n_resgroups=2, n_resblocks=2, reduction=4, scale=2
    ),
    "RGT": of_class(
        "RGT.__arch.rgt:RGT", 3, 32, 32, embed_dim=24, depth=(2,), num_heads=(2,), split_size=(8, 8), upscale=2
    ),
    "RealPLKSR": of_class("PLKSR.__arch.RealPLKSR:RealPLKSR", 3, 24, 24, dim=16, n_blocks=2, upscaling_factor=2),
    "RetinexFormer": of_class(
        "RetinexFormer.__arch.retinexformer_arch:RetinexFormer", 3, 32, 32, n_feat=8, num_blocks=[1, 1, 1]
    ),
    "SAFMN": of_class("SAFMN.__arch.safmn:SAFMN", 3, 32, 32, dim=16, n_blocks=2, upscaling_factor=2),
    "SCUNet": of_class("SCUNet.__arch.SCUNet:SCUNet", 3, 64, 64, config=[1, 1, 1, 1, 1, 1, 1], dim=64),
    "SPAN": of_class("SPAN.__arch.span:SPAN", 3, 24, 24, num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=2),
    "Swin2SR": of_class(
        "Swin2SR.__arch.Swin2SR:Swin2SR", 3, 32, 32, img_size=32, embed_dim=24, depths=[2], num_heads=[2], window_size=8
    ),
    "SwinIR": of_class(
        "SwinIR.__arch.SwinIR:SwinIR", 3, 32, 32, img_size=32, embed_dim=24, depths=[2], num_heads=[2], window_size=8
    ),
    "Uformer": of_class(
        "Uformer.__arch.Uformer:Uformer", 3, 128, 128, img_size=128, embed_dim=8, depths=[1] * 9, win_size=8
    ),
}

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

# --- segmentation-models-pytorch --------------------------------------------------------------------------------------


def _segmentation(kind: str, encoder: str = "resnet18", **options: Any) -> Make:
    return on_images(lambda package: getattr(package, kind)(encoder, encoder_weights=None, **options), 3, 64, 64)


SEGMENTATION = {
    **{kind: _segmentation(kind) for kind in ("FPN", "Linknet", "MAnet", "PSPNet", "Segformer", "UPerNet", "Unet")},
    **{kind: _segmentation(kind) for kind in ("DeepLabV3", "DeepLabV3Plus", "UnetPlusPlus")},
    "Unet_efficientnet": _segmentation("Unet", "efficientnet-b0"),
    "Unet_mobilenet": _segmentation("Unet", "mobilenet_v2"),
    "Unet_scse": _segmentation("Unet", "resnet18", decoder_attention_type="scse"),
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
    "pytorchcv": ("pytorchcv.model_provider", PYTORCHCV),
    "rtdl": ("rtdl_revisiting_models", RTDL),
    "segmentation-models": ("segmentation_models_pytorch", SEGMENTATION),
    "spandrel": ("spandrel.architectures", SPANDREL),
    "torch-geometric": ("torch_geometric", GEOMETRIC),
    "vit-pytorch": ("vit_pytorch", VIT_PYTORCH),
    "x-transformers": ("x_transformers", X_TRANSFORMERS),
} | MORE


def by_package() -> Iterator[tuple[str, list[str]]]:
    """The networks of each package."""
    return ((package, list(made)) for package, (_, made) in PACKAGES.items())

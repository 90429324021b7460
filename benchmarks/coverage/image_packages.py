"""Networks on images of packages that nobody here wrote, see ``zoo_packages``."""

from __future__ import annotations

from typing import Any

import torch
from making import Make, of_class, on_images
from torch import nn

__all__ = ["ON_IMAGES"]

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

ON_IMAGES: dict[str, tuple[str, dict[str, Make]]] = {
    "pytorchcv": ("pytorchcv.model_provider", PYTORCHCV),
    "segmentation-models": ("segmentation_models_pytorch", SEGMENTATION),
    "spandrel": ("spandrel.architectures", SPANDREL),
    "vit-pytorch": ("vit_pytorch", VIT_PYTORCH),
}

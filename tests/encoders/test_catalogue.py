from __future__ import annotations

import subprocess
import sys

import pytest

from stflow_graph.encoders.catalogue import ENCODERS, canonical_name, entry_of, spellings
from stflow_graph.errors import BadConfig

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
GENBIO = ((0.697, 0.575, 0.728), (0.188, 0.24, 0.187))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# width, mean and std, input px, resized to, interpolation: as the model cards state them
STATED = {
    "efficientnet_lite0": (1280, HALF, 224, None, "bicubic"),
    "resnet50": (1024, IMAGENET, 224, None, "bilinear"),
    "uni_v1": (1024, IMAGENET, 224, None, "bilinear"),
    "uni_v2": (1536, IMAGENET, 224, None, "bilinear"),
    "gigapath": (1536, IMAGENET, 224, 256, "bicubic"),
    "virchow": (2560, IMAGENET, 224, None, "bicubic"),
    "virchow2": (2560, IMAGENET, 224, None, "bicubic"),
    "h_optimus_0": (1536, BIOPTIMUS, 224, None, "bilinear"),
    "h_optimus_1": (1536, BIOPTIMUS, 224, None, "bilinear"),
    "h0_mini": (768, BIOPTIMUS, 224, None, "bicubic"),
    "phikon": (768, IMAGENET, 224, None, "bilinear"),
    "phikon_v2": (1024, IMAGENET, 224, None, "bilinear"),
    "hibou_l": (1024, HIBOU, 224, None, "bicubic"),
    "conch_v1": (512, CLIP, 448, None, "bicubic"),
    "ctranspath": (768, IMAGENET, 224, None, "bilinear"),
    "kaiko_s8": (384, HALF, 224, None, "bilinear"),
    "kaiko_s16": (384, HALF, 224, None, "bilinear"),
    "kaiko_b8": (768, HALF, 224, None, "bilinear"),
    "kaiko_b16": (768, HALF, 224, None, "bilinear"),
    "kaiko_l14": (1024, HALF, 224, None, "bilinear"),
    "lunit_s8": (384, LUNIT, 224, 248, "bicubic"),
    "gpfm": (1024, IMAGENET, 224, None, "bicubic"),
    "ciga": (512, IMAGENET, 224, None, "bilinear"),
    "conch_v1_5": (768, IMAGENET, 448, None, "bilinear"),
    "seal_conch": (512, CLIP, 224, None, "bicubic"),
    "seal_uni_v2": (1536, IMAGENET, 224, None, "bilinear"),
    "midnight": (3072, HALF, 224, None, "bilinear"),
    "genbio_pathfm": (4608, GENBIO, 224, None, "bilinear"),
    "openpath": (1536, IMAGENET, 224, None, "bilinear"),
    "dinov2_vits14": (384, IMAGENET, 224, None, "bicubic"),
    "dinov2_vitb14": (768, IMAGENET, 224, None, "bicubic"),
    "dinov2_vitl14": (1024, IMAGENET, 224, None, "bicubic"),
    "dinov2_vitg14": (1536, IMAGENET, 224, None, "bicubic"),
    "dinov2_vits14_reg": (384, IMAGENET, 224, None, "bicubic"),
    "dinov2_vitb14_reg": (768, IMAGENET, 224, None, "bicubic"),
    "dinov2_vitl14_reg": (1024, IMAGENET, 224, None, "bicubic"),
    "dinov2_vitg14_reg": (1536, IMAGENET, 224, None, "bicubic"),
    "dinov3_vits16": (384, IMAGENET, 256, None, "bicubic"),
    "dinov3_vits16plus": (384, IMAGENET, 256, None, "bicubic"),
    "dinov3_vitb16": (768, IMAGENET, 256, None, "bicubic"),
    "dinov3_vitl16": (1024, IMAGENET, 256, None, "bicubic"),
    "dinov3_vith16plus": (1280, IMAGENET, 256, None, "bicubic"),
}


def test_every_encoder_states_its_width_and_transform():
    stated = {
        name: (e.width, (t.mean, t.std), t.size, t.resize, t.interpolation)
        for name, e in ENCODERS.items()
        for t in [e.transform]
    }
    assert stated == STATED


def test_encoders_that_came_later_state_their_repository_licence_and_gate():
    stated = {
        "conch_v1_5": ("MahmoodLab/conchv1_5", "CC-BY-NC-ND-4.0", True),
        "seal_conch": ("MahmoodLab/SEAL", "CC-BY-NC-ND-4.0", True),
        "seal_uni_v2": ("MahmoodLab/SEAL", "CC-BY-NC-ND-4.0", True),
        "midnight": ("kaiko-ai/midnight", "MIT", False),
        "genbio_pathfm": ("genbio-ai/genbio-pathfm", "GenBio AI Community", False),
        "openpath": ("taejoon89/openpath", "Apache-2.0", False),
        "dinov2_vitg14_reg": ("timm/vit_giant_patch14_reg4_dinov2.lvd142m", "Apache-2.0", False),
        "dinov3_vits16plus": (
            "timm/vit_small_plus_patch16_dinov3.lvd1689m",
            "DINOv3 License",
            False,
        ),
    }
    for name, facts in stated.items():
        entry = ENCODERS[name]
        assert (entry.hub, entry.licence, entry.gated) == facts
        assert entry.page == f"https://huggingface.co/{entry.hub}"


def test_adapted_encoders_are_in_the_catalogue():
    bases = {e.name: e.base for e in ENCODERS.values() if e.base is not None}
    assert bases == {"seal_conch": "conch_v1", "seal_uni_v2": "uni_v2"}
    for name, base in bases.items():
        assert ENCODERS[name].width == ENCODERS[base].width


def test_names_and_aliases_mean_one_encoder_each():
    names = [name for e in ENCODERS.values() for name in (e.name, *e.aliases)]
    assert len(names) == len(set(names))
    for entry in ENCODERS.values():
        for name in (entry.name, *entry.aliases):
            assert canonical_name(name) == entry.name
            assert entry_of(name) is entry
            assert sorted(spellings(name)) == sorted([entry.name, *entry.aliases])
            assert spellings(name)[0] == name
    assert canonical_name("resnet18") == "resnet18"
    assert spellings("resnet18") == ["resnet18"]
    assert spellings("uni_v1_official")[:2] == ["uni_v1_official", "uni_v1"]


def test_a_wrong_name_lists_the_similar_and_all_names():
    message = r"did you mean kaiko_l14.*known: efficientnet_lite0, resnet50"
    with pytest.raises(BadConfig, match=message):
        entry_of("kaiko_l1")


def test_the_catalogue_needs_no_torch():
    script = (
        "import sys; from stflow_graph.encoders.weights_file import find_weights; "
        "from stflow_graph.encoders.catalogue import ENCODERS; "
        "[find_weights(e, '.') for e in ENCODERS.values()]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_front_desk_knows_its_names_alone():
    import stflow_graph.encoders as desk

    assert all(getattr(desk, name) is not None for name in desk.__all__)
    with pytest.raises(AttributeError, match="decoder"):
        _ = desk.decoder

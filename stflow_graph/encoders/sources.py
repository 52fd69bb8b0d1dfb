"""Where on the Hugging Face hub the weights of an encoder are, and where they belong on disk."""

from __future__ import annotations

import dataclasses

from stflow_graph.errors import BadConfig


@dataclasses.dataclass(frozen=True)
class WeightsSource:
    """The weights of an encoder on the hub.

    Attributes:
        repo: ``owner/name``.
        files: names of the file in it, the first preferred.
        folder: the encoder's folder under a weights root.
        repo_kind: ``"model"`` or ``"dataset"``.
    """

    repo: str
    files: tuple[str, ...]
    folder: str
    repo_kind: str = "model"


_BIN_FIRST = ("pytorch_model.bin", "model.safetensors")
_SAFE_FIRST = ("model.safetensors", "pytorch_model.bin")
_KAIKO = "1aurent/{}.kaiko_ai_towards_large_pathology_fms"
_SOURCES = {
    "uni_v1": WeightsSource("MahmoodLab/UNI", _BIN_FIRST, "uni"),
    "uni_v2": WeightsSource("MahmoodLab/UNI2-h", _BIN_FIRST, "uni_v2"),
    "gigapath": WeightsSource("prov-gigapath/prov-gigapath", _BIN_FIRST, "gigapath"),
    "virchow": WeightsSource("paige-ai/Virchow", _BIN_FIRST, "virchow"),
    "virchow2": WeightsSource("paige-ai/Virchow2", _BIN_FIRST, "virchow2"),
    "h_optimus_0": WeightsSource("bioptimus/H-optimus-0", _BIN_FIRST, "h_optimus_0"),
    "h_optimus_1": WeightsSource("bioptimus/H-optimus-1", _BIN_FIRST, "h_optimus_1"),
    "h0_mini": WeightsSource("bioptimus/H0-mini", _BIN_FIRST, "h0_mini"),
    "phikon": WeightsSource("owkin/phikon", _BIN_FIRST, "phikon"),
    "phikon_v2": WeightsSource("owkin/phikon-v2", _SAFE_FIRST, "phikon_v2"),
    "hibou_l": WeightsSource("histai/hibou-L", _SAFE_FIRST, "hibou_l"),
    "conch_v1": WeightsSource("MahmoodLab/CONCH", ("pytorch_model.bin",), "conch_v1"),
    "ctranspath": WeightsSource(
        "MahmoodLab/hest-bench",
        ("fm_v1/ctranspath/CHIEF_CTransPath.pth", "fm_v1/ctranspath/ctranspath.pth"),
        "ctranspath",
        "dataset",
    ),
    **{
        f"kaiko_{size}": WeightsSource(_KAIKO.format(model), _SAFE_FIRST, f"kaiko_{size}")
        for size, model in (
            ("s8", "vit_small_patch8_224"),
            ("s16", "vit_small_patch16_224"),
            ("b8", "vit_base_patch8_224"),
            ("b16", "vit_base_patch16_224"),
            ("l14", "vit_large_patch14_reg4_224"),
        )
    },
    "lunit_s8": WeightsSource("1aurent/vit_small_patch8_224.lunit_dino", _SAFE_FIRST, "lunit_s8"),
    "gpfm": WeightsSource("majiabo/GPFM", ("GPFM.pth",), "gpfm"),
    "resnet50": WeightsSource("timm/resnet50.tv_in1k", _SAFE_FIRST, "resnet50"),
}
_ALIASES = {"uni": "uni_v1", "uni_v1_official": "uni_v1"}


def weights_source(name: str) -> WeightsSource:
    """Return where an encoder's weights are.

    Raises:
        BadConfig: they are on no hub, or the name is unknown; lists those that are.
    """
    name = _ALIASES.get(name, name)
    if name not in _SOURCES:
        known = ", ".join(_SOURCES)
        raise BadConfig(f"encoder {name!r}: its weights are not on the hub; those of {known} are")
    return _SOURCES[name]

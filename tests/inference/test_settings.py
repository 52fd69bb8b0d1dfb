from __future__ import annotations

import pytest
from linear import configured

from stflow_graph.errors import BadConfig, BadInput, StorageFailed
from stflow_graph.inference.settings import SampleSettings


def test_settings_that_are_not_given_are_the_checkpoints():
    flow = configured().flow
    assert SampleSettings().flow(flow) == flow
    changed = SampleSettings(sampler="heun", n_sample_steps=7).flow(flow)
    assert (changed.sampler, changed.n_sample_steps) == ("heun", 7)
    assert changed.model_copy(update={"sampler": "euler", "n_sample_steps": 2}) == flow
    assert SampleSettings(n_sample_steps=7).flow(flow).sampler == flow.sampler


def test_defaults_are_the_mean_alone():
    settings = SampleSettings()
    assert (settings.n_samples, settings.seed, settings.device) == (1, 0, "auto")


def test_the_image_is_a_file_or_the_slides_in_a_folder(tmp_path):
    assert SampleSettings().image_of("S") is None
    assert SampleSettings().picture("S") is None
    assert SampleSettings(image="he.svs").image_of("S").name == "he.svs"
    settings = SampleSettings(image=tmp_path)
    assert settings.image_of("S") == tmp_path / "S.jpg"  # for the error message
    with pytest.raises(BadInput, match=r"S\.jpg"):
        settings.picture("S")
    for ending in (".tiff", ".tif", ".png", ".jpeg", ".jpg"):
        (tmp_path / f"S{ending}").touch()
        assert settings.image_of("S") == tmp_path / f"S{ending}"
    assert settings.image_of("T") == tmp_path / "T.jpg"


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_samples": 0},
        {"n_samples": 10**9},
        {"n_samples": 10**5000},
        {"n_sample_steps": 10**6},
        {"seed": -1},
        {"seed": 2**64},
        {"tile_size": 0},
        {"sampler": "x" * 9999},
        {"precision": "fp16"},
    ],
)
def test_what_would_run_for_ever_is_refused_at_once(wrong):
    with pytest.raises(BadConfig, match=rf"^{next(iter(wrong))} = .*expected") as caught:
        SampleSettings(**wrong)
    assert len(str(caught.value)) < 400


def test_samples_that_do_not_fit_the_disk_are_refused(tmp_path):
    settings = SampleSettings(n_samples=10_000)
    settings.check_disk(tmp_path / "new/p", 10, 10)
    message = r"new/p: n_samples = 10000 of 1,000,000,000 spots and 50 genes need [\d,.]+ GB, "
    with pytest.raises(StorageFailed, match=message):
        settings.check_disk(tmp_path / "new/p", 10**9, 50)
    SampleSettings().check_disk(tmp_path, 10**12, 50)  # a mean is written in any case

from __future__ import annotations

import pytest
from linear import configured

from stflow_graph.errors import BadInput
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

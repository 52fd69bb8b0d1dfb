from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from stflow_graph.encoders import PatchTransform


def test_pixels_are_scaled_and_normalised():
    transform = PatchTransform(4, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(1, 4, 4, 3)
    expected = torch.tensor([-1.0, 0.75, 0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert torch.allclose(transform(images), expected)


@pytest.mark.parametrize("size", [16, 100])
def test_other_sizes_are_resized_as_pillow_does(size):
    rng = np.random.default_rng(0)
    # away from 0 and 255: Pillow clips between its two passes
    image = rng.integers(90, 160, (40, 40, 3), dtype=np.uint8)
    transform = PatchTransform(size, mean=(0.0,) * 3, std=(1.0,) * 3)
    resized = transform(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy() * 255
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    assert np.abs(resized - expected).max() < 1.5


def test_other_shapes_and_types_are_refused():
    transform = PatchTransform()
    with pytest.raises(ValueError, match=r"\[2, 3, 8, 8\]"):
        transform(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32"):
        transform(torch.zeros(2, 8, 8, 3))


def test_the_centre_is_cut_out_of_what_was_resized():
    """As GigaPath does: 256 px bicubic, then the middle 224."""
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (2, 40, 40, 3), dtype=np.uint8))
    whole = PatchTransform(32, interpolation="bilinear")(images)
    cut = PatchTransform(24, interpolation="bilinear", resize=32)(images)
    assert torch.equal(cut, whole[..., 4:28, 4:28])
    assert PatchTransform(24, resize=32)(images[:, :32, :32]).shape == (2, 3, 24, 24)


def test_descriptions_are_short():
    assert PatchTransform(448).describe() == "448 px (bicubic)"
    assert PatchTransform(resize=256).describe() == "224 px (256 bicubic, centre crop)"

from __future__ import annotations

import pytest
from toy import toy_encoder, write_images

from stflow_graph.data.splits import embedding_path
from stflow_graph.errors import BadInput
from stflow_graph.preparation.engine import EmbedSettings
from stflow_graph.stages.embed import embed


def test_a_root_is_embedded_in_the_layout_of_stflow_with_progress(tmp_path):
    for dataset in ("D1", "D2"):
        (tmp_path / "root" / dataset / "splits").mkdir(parents=True)
        for slide in "AB":
            write_images(tmp_path / "root" / dataset / "patches" / f"{slide}.h5")
    calls = []
    done = embed(
        tmp_path / "root",
        tmp_path / "emb",
        toy_encoder(),
        EmbedSettings(batch_size=4),
        progress=lambda *call: calls.append(call),
    )
    expected = [embedding_path(tmp_path / "emb", d, "toy", s) for d in ("D1", "D2") for s in "AB"]
    assert [d.path for d in done] == expected
    assert calls[:2] == [("A", 4, 7), ("A", 7, 7)]
    assert len(embed(tmp_path / "root/D1", tmp_path / "emb", toy_encoder())) == 2


def test_a_root_without_patches_is_refused(tmp_path):
    (tmp_path / "D" / "splits").mkdir(parents=True)
    with pytest.raises(BadInput, match="no .h5 file"):
        embed(tmp_path / "D", tmp_path / "emb", toy_encoder())


def test_slides_as_prepared_need_no_splits(tmp_path):
    write_images(tmp_path / "prepared/patches/A.h5")
    (done,) = embed(tmp_path / "prepared", tmp_path / "emb", toy_encoder())
    assert done.path == embedding_path(tmp_path / "emb", "prepared", "toy", "A")

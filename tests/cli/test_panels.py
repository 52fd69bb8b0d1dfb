from __future__ import annotations

import json

import anndata
import numpy as np
from toy import GENES


def test_panels_from_the_list_to_the_scores(cli, panels, tmp_path):
    places = ["--source-dataroot", panels.root, "--embed-dataroot", panels.embeddings]
    sets = [f"{key}={value}" for key, value in panels.settings.items() if key[:4] != "data"]
    step = ["train", *places, "--encoder", "toy", "--out", tmp_path / "run", "--set", *sets]
    chosen = cli("genes", panels.root, "--fold", 0, "--min-slides", 1, "--n-genes", 6)
    assert chosen.code == 0, chosen.err
    assert "--missing-genes mask" in chosen.out
    assert cli("genes", panels.root, "--min-slides", 0).code == 2
    refused = cli(*step)
    assert refused.code == 3
    assert "train --missing-genes mask" in refused.error
    assert cli(*step, "--missing-genes", "maybe").code == 4
    masked = cli(*step, "--missing-genes", "mask")
    assert masked.code == 0, masked.err
    again = cli(*step, "--missing-genes", "mask")
    assert (again.code, "up to date" in again.out) == (0, True)
    assert "missing genes masked" in again.out
    files = [panels.embedding(slide) for slide in "AB"]
    out = tmp_path / "predictions"
    assert cli("sample", tmp_path / "run", *files, "--out", out, "--n-samples", 4).code == 0
    for slide in "AB":
        prediction = anndata.read_h5ad(out / f"{slide}.h5ad")
        assert list(prediction.var_names) == GENES
        assert np.isfinite(prediction.X).all()
        assert np.isfinite(prediction.layers["std"]).all()
    scored = cli(
        *("eval", out / "A.h5ad", out / "B.h5ad", "--truth", panels.root / "adata"),
        *("--out", tmp_path / "eval", "--n-bootstrap", 20),
    )
    assert scored.code == 0, scored.err
    assert "A: 36 of 36 predicted spots, 5 of 6 genes scored" in scored.out
    assert "mean over measured genes" in scored.out
    text = (tmp_path / "eval/metrics.json").read_text()
    assert "NaN" not in text
    slides = json.loads(text)["models"]["graph"]["slides"]
    assert slides["A"]["genes"]["G0"]["pearson"] is None
    assert slides["A"]["n_genes_defined"]["pearson"] == 5
    assert list(slides["B"]["genes"]["G5"].values()) == [None] * len(slides["B"]["genes"]["G5"])
    assert slides["B"]["genes"]["G2"]["pearson"] is not None
    assert "5 of 6 genes" in (tmp_path / "eval/report.html").read_text()

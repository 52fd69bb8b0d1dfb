"""The real slides beside the checkout, for the tests that use them when they are there."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
KIT = DATA / "her2st"
BENCH = DATA / "her2st_bench"
EMBEDDINGS = DATA / "embeddings" / "efficientnet_lite0"

needs_real_slides = pytest.mark.skipif(not BENCH.exists(), reason="needs ../shared")

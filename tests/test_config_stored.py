"""A run's configuration on disk, whatever is in the file."""

from __future__ import annotations

import json

import pytest

from stflow_graph.config import load_config
from stflow_graph.config.stored import check_same_run, identity
from stflow_graph.errors import BadConfig, BadInput

CONFIG = load_config(None, {"data.source_dataroot": "a", "data.embed_dataroot": "b"})


def test_the_same_run_is_resumed_and_another_refused(tmp_path):
    check_same_run(tmp_path, CONFIG)  # a new folder
    (tmp_path / "run.json").write_text(json.dumps({"config": identity(CONFIG)}))
    check_same_run(tmp_path, CONFIG)
    other = load_config(None, {"data.source_dataroot": "x" * 999, "data.embed_dataroot": "b"})
    with pytest.raises(BadConfig, match=r"data.source_dataroot = 'a' \(now 'xxx") as caught:
        check_same_run(tmp_path, other)
    assert len(str(caught.value)) < 600


CONTENTS = [
    {"config": 3},
    {"config": {"flow": 3}},
    {"config": {**identity(CONFIG), "flow": [1]}},
    {"config": {"\x1b" * 9999: "y" * 9999}},
    {"config": None},
    {},
    {"config": {"flow": {"kind": {"a": [1] * 9999}}}},
]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_any_other_content_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(BadConfig, match=r"--overwrite") as caught:
        check_same_run(tmp_path, CONFIG)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["[]", "3", "{", ""])
def test_what_is_no_object_is_bad_input(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(BadInput, match=r"run.json"):
        check_same_run(tmp_path, CONFIG)

import hashlib
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stflow_graph.errors import BadInput
from stflow_graph.io.hub import RemoteFile, read_token


@given(content=st.binary(max_size=200), other=st.binary(max_size=200))
def test_a_file_is_known_by_its_content_alone(tmp_path_factory, content, other):
    path = tmp_path_factory.mktemp("hub") / "file"
    large = hashlib.sha256(content).hexdigest()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    for digest in (large, git):
        file = RemoteFile("a/file", len(content), digest)
        path.write_bytes(other)
        assert file.is_at(path) == (other == content)
        path.write_bytes(content)
        assert file.is_at(path)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_digest_of_small_files_is_gits(tmp_path):
    path = tmp_path / "file"
    path.write_text("hello\n")
    words = ["git", "hash-object", "--no-filters", str(path)]
    git = subprocess.run(words, capture_output=True, text=True, check=True)
    assert RemoteFile("file", 6, git.stdout.strip()).is_at(path)


def test_a_missing_file_a_folder_and_parts_of_other_contents_are_told_apart(tmp_path):
    file, newer = RemoteFile("a", 1, "0" * 40), RemoteFile("a", 1, "1" * 40)
    assert not file.is_at(tmp_path)
    assert not file.is_at(tmp_path / "absent")
    assert file.part(tmp_path / "a") != newer.part(tmp_path / "a")
    assert file.part(tmp_path / "a").parent == tmp_path


def test_a_token_is_one_word_of_a_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("  hf_abc\n")
    assert read_token(path) == "hf_abc"
    for bad in (b"", b"two words", b"a\nb\n", b"\xff\xfe"):
        path.write_bytes(bad)
        with pytest.raises(BadInput, match="not a token") as caught:
            read_token(path)
        assert "two words" not in str(caught.value)
    with pytest.raises(BadInput, match="errno 2"):
        read_token(tmp_path / "absent")

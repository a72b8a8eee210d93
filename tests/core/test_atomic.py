"""Whole or not at all, whatever goes wrong in between."""

import os
from pathlib import Path

import pytest

from ditscope.core.atomic import check_space, file_sha256, new_file, new_folder
from ditscope.errors import BadRequest, ResourceError


def test_a_file_appears_whole(tmp_path):
    with new_file(tmp_path / "a") as beside:
        beside.write_text("new")
        assert not (tmp_path / "a").exists()
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "new"


def test_a_failed_block_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), new_file(tmp_path / "a") as beside:
        beside.write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "a") as beside:
        (beside / "sub").mkdir()
        (beside / "sub" / "one").write_text("1")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a" / "sub" / "one").read_text() == "1"


def test_an_existing_folder_is_refused_before_the_work(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(BadRequest, match="already exists"), new_folder(tmp_path / "a"):
        pytest.fail("the block ran")


def test_a_folder_is_replaced_only_where_every_file_is_ours(tmp_path):
    target = tmp_path / "a"
    target.mkdir()
    (target / "config.json").write_text("old")
    with new_folder(target, replaceable={"config.json"}) as beside:
        (beside / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "new"
    (target / "sub").mkdir()
    (target / "sub" / "config.json").touch()
    with (
        pytest.raises(BadRequest, match=r"would be lost: sub/config\.json"),
        new_folder(target, replaceable={"config.json"}),
    ):
        pytest.fail("the block ran")
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_or_a_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with (
            pytest.raises(BadRequest, match="not a folder"),
            new_folder(tmp_path / name, replaceable=()),
        ):
            pytest.fail("the block ran")


def test_a_missing_parent_is_found_before_the_work(tmp_path):
    with pytest.raises(ResourceError, match="No such file"), new_folder(tmp_path / "none" / "a"):
        pytest.fail("the block ran")


def test_no_space_is_found_before_the_work(tmp_path):
    check_space(tmp_path, 1)
    with pytest.raises(ResourceError, match="GB needed"):
        check_space(tmp_path, 10**15)


class Fault:
    """Makes the k-th of some system calls fail, as a full disk or a broken one does."""

    def __init__(self, monkeypatch, k):
        self.left = k
        for owner, name in ((os, "fsync"), (os, "open"), (Path, "rename"), (Path, "replace")):
            monkeypatch.setattr(owner, name, self.wrapped(getattr(owner, name)))
        monkeypatch.setattr(Path, "mkdir", self.wrapped(Path.mkdir))

    def wrapped(self, call):
        def counted(*arguments, **keywords):
            self.left -= 1
            if self.left == 0:
                raise OSError(28, "No space left on device")
            return call(*arguments, **keywords)

        return counted


def write_file(target):
    with new_file(target / "a") as beside:
        beside.write_text("new")


def write_folder(target):
    with new_folder(target, replaceable={"a"}) as beside:
        (beside / "a").write_text("new")


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_every_system_call_may_fail(tmp_path, monkeypatch, write):
    failures = 0
    for k in range(1, 40):
        target = tmp_path / f"target{k}"
        target.mkdir()
        (target / "a").write_text("old")
        with monkeypatch.context() as patch:
            fault = Fault(patch, k)
            try:
                write(target)
            except ResourceError as error:
                failures += 1
                assert "No space left" in str(error)
        # Old or new, never a mixture. Only the last flush can fail after the new one is in place.
        assert (target / "a").read_text() in ("old", "new")
        leftovers = [name for name in os.listdir(tmp_path) if ".tmp-" in name]
        assert leftovers + [name for name in os.listdir(target) if ".tmp-" in name] == []
        if fault.left > 0:
            break
    assert fault.left > 0, "the last write met no fault, so every call has failed once"
    assert failures > 3
    assert (target / "a").read_text() == "new"


def test_digest_is_the_one_that_sha256sum_prints(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "a") == known

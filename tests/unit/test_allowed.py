"""A refusal of bpf(2) in words; and places for what is compiled."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from nettop.core.errors import ExitCode
from nettop.loader import cache
from nettop.loader.allowed import explained

WHOLE = "         0          0 4294967295\n"


@pytest.mark.parametrize(
    ("number", "seccomp", "uid_map", "words", "code"),
    [
        (errno.EPERM, "0", "         0       1000          1\n", "user namespace", ExitCode.PRIVILEGE),
        (errno.EPERM, "2", WHOLE, "seccomp", ExitCode.PRIVILEGE),
        (errno.ENOSYS, "2", WHOLE, "seccomp", ExitCode.PRIVILEGE),
        (errno.ENOSYS, "0", WHOLE, "CONFIG_BPF_SYSCALL", ExitCode.UNSUPPORTED),
        (errno.EACCES, "0", WHOLE, "selinux", ExitCode.PRIVILEGE),
    ],
)
def test_a_refusal_says_what_refuses(tmp_path, number, seccomp, uid_map, words, code):
    (tmp_path / "status").write_text(f"Name:\tnettop\nSeccomp:\t{seccomp}\n")
    (tmp_path / "uid_map").write_text(uid_map)
    (tmp_path / "lsm").write_text("lockdown,selinux,bpf")
    error = explained(number, tmp_path, tmp_path)
    assert words in error.message
    assert error.code == code
    assert error.hint


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """A cache, a memory of its own, and a temporary directory."""
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setattr(cache, "_CACHE", tmp_path / "cache")
    monkeypatch.setattr(cache, "_MEMORY", tmp_path / "run" / "cache")
    monkeypatch.setattr(cache, "_TEMPORARY", (str(tmp_path / "nowhere"), str(tmp_path)))
    return tmp_path


def test_the_cache_is_where_it_belongs(places):
    assert cache.cache_directory() == (places / "cache", False)
    assert (places / "cache").stat().st_mode & 0o777 == 0o700


def full(monkeypatch, *names: str) -> None:
    """No file can be made in directories of these names, as on a read-only file system."""
    usable = cache._usable
    monkeypatch.setattr(cache, "_usable", lambda path: path.name not in names and usable(path))


def test_where_var_is_read_only_it_lies_in_memory(places, monkeypatch):
    (places / "cache").mkdir(mode=0o700)
    failure = OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(cache.tempfile, "TemporaryFile", Mock(side_effect=[failure, io.BytesIO()]))
    assert cache.cache_directory() == (places / "run" / "cache", False)


def test_one_that_others_can_write_is_not_used(places):
    (places / "cache").mkdir()
    (places / "cache").chmod(0o777)
    assert cache.cache_directory() == (places / "run" / "cache", False)


def test_a_last_resort_is_taken_away_at_the_end(places, monkeypatch):
    full(monkeypatch, "cache")
    path, scratch = cache.cache_directory()
    assert scratch
    assert path.parent == places
    assert path.stat().st_mode & 0o777 == 0o700


def test_no_place_at_all_is_said(places, monkeypatch):
    full(monkeypatch, "cache")
    monkeypatch.setattr(cache, "_TEMPORARY", (str(places / "nowhere"),))
    with pytest.raises(cache.NettopError, match="no place for compiled programs"):
        cache.cache_directory()

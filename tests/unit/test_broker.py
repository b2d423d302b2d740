"""What opens root's files: for whom it opens what, and what it makes of a screen that is hostile."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from lab.shell import eventually

from nettop import broker

NAMED = ("settings.toml", "/srv/out.csv", "./a/../b")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[broker.Broker]:
    """A broker that was started in a directory of the test's."""
    monkeypatch.chdir(tmp_path)
    made = broker.start([*NAMED[:1], str(tmp_path / "named"), "link"])
    yield made
    made._sock.close()
    os.waitpid(made.pid, 0)


@pytest.mark.parametrize(
    ("how", "path", "opens"),
    [
        *((how, name, True) for how in ("read", "log", "new", "again", "look") for name in NAMED),
        ("chmod", "/srv/out.csv", False),
        ("", "/srv/out.csv", False),
        ("new", "nettop-h-eth0-20250102-030405.snapshot.json.gz", True),
        ("look", "nettop-1.svg", True),
        ("read", "nettop-1.svg", False),
        ("log", "nettop-1.svg", False),
        ("again", "nettop-1.svg", False),  # not before it has been made
        ("again", "nettop-made.gz", True),
        ("new", "nettop-", False),
        ("new", "nettop-../x", False),
        ("new", "nettop-a/b", False),
        ("new", "nettop-a\n", False),
        ("new", "nettop-\u00e9", False),
        ("new", "nettop-" + "a" * 201, False),
        ("new", "/srv/nettop-1.svg", False),
        ("new", "./nettop-1.svg", False),
        ("new", "x.nettop-1.svg", False),
        ("read", "/etc/shadow", False),
        ("new", "/srv/out.csv/", False),
        ("new", "b", False),  # a name is a name, and no place
    ],
)
def test_what_may_be_opened(how: str, path: str, opens: bool) -> None:
    assert broker.allowed(how, path, frozenset(NAMED), {"nettop-made.gz"}) == opens


def test_files_are_opened_as_they_would_be_here(asked: broker.Broker, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("top = 3\n")
    with open(asked("read", "settings.toml")) as file:
        assert file.read() == "top = 3\n"
    fd = asked("new", "nettop-1.svg")
    assert not os.get_inheritable(fd)
    os.write(fd, b"<svg>")
    os.close(fd)
    assert (tmp_path / "nettop-1.svg").read_bytes() == b"<svg>"
    assert (tmp_path / "nettop-1.svg").stat().st_mode & 0o777 == 0o600
    os.close(asked("again", "nettop-1.svg"))
    os.close(asked("look", "nettop-1.svg"))
    with pytest.raises(FileExistsError):
        asked("new", "nettop-1.svg")
    with pytest.raises(FileNotFoundError) as missing:
        asked("read", str(tmp_path / "named"))
    assert missing.value.strerror == "No such file or directory"
    assert missing.value.filename == str(tmp_path / "named")
    (tmp_path / "link").symlink_to("settings.toml")
    for how in ("log", "new", "again"):
        with pytest.raises(OSError, match="link"):
            asked(how, "link")  # type: ignore[arg-type]
    (tmp_path / "named").mkdir()
    with pytest.raises(IsADirectoryError):
        asked("log", str(tmp_path / "named"))
    assert sorted(os.listdir(tmp_path)) == ["link", "named", "nettop-1.svg", "settings.toml"]


def test_what_it_does_not_open_is_left_to_the_screen_s_own_rights(
    asked: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(asked("read", "/etc/passwd"))
    monkeypatch.setattr(
        broker.files, "open_here", Mock(side_effect=PermissionError(errno.EACCES, "not you either"))
    )
    with pytest.raises(PermissionError, match="Operation not permitted"):
        asked("read", "/etc/passwd")


def test_no_message_brings_it_down(asked: broker.Broker, tmp_path: Path) -> None:
    chance = random.Random(7)
    messages = [
        b"\0",
        b"[",
        b"{}",
        b"[]",
        b"1",
        b'["new"]',
        b'["new", 1]',
        b'[["new"], "nettop-1"]',
        b"[" * 9000,
    ]
    messages += [b'["new", "nettop-1", 3]', b'["look", "settings.toml\\u0000"]', b'["read", "\\ud800"]']
    messages += [chance.randbytes(chance.randrange(1, 300)) for _ in range(300)]
    for message in messages:
        asked._sock.send(message)
        data, fds, _, _ = socket.recv_fds(asked._sock, 1 << 16, 4)
        assert (json.loads(data)[0] in (errno.EINVAL, errno.EPERM), fds) == (True, []), message
    os.close(asked("new", "nettop-1.svg"))
    assert [path.name for path in tmp_path.iterdir()] == ["nettop-1.svg"]


def test_it_goes_with_the_other_end() -> None:
    made = broker.start([])
    made._sock.close()
    assert eventually(lambda: os.waitpid(made.pid, os.WNOHANG) == (made.pid, 0))


def test_that_it_is_gone_is_said(asked: broker.Broker) -> None:
    asked._sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError, match=r"gone|Broken pipe"):
        asked("look", "nettop-1.svg")

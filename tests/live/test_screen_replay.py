"""What a recording shows is what the screen showed: the same frame, from the kernel and from the file."""

import json
from pathlib import Path

from lab import Lab, Link
from lab.program import REPOSITORY, interpreter
from lab.shell import run
from lab.traffic import answering, asking
from screen_driver import SIZE, VIEWS, look

from nettop.probes.base import all_probes
from nettop.record.recording import Recording, Replay
from nettop.session import Session
from nettop.settings import Settings
from nettop.ui.app import NettopApp

FRAMES = 8


async def replayed(path: str, time_ns: int) -> dict[str, list[str]]:
    """The recording on a screen with one line more, for the time line; stopped at the frame of that time."""
    with Recording(path) as recording:
        replay = Replay(recording, hold=True)
        replay.step(recording.times_ns.index(time_ns))
        session = Session(Settings(), replay=replay)
        app = NettopApp(
            session.watched(replay.frames()), tuple(all_probes().values()), session.settings, session
        )
        async with app.run_test(size=(SIZE[0], SIZE[1] + 1)) as pilot:
            wanted = recording.times_ns.index(time_ns) + 1
            for _ in range(400):
                await pilot.pause(0.05)
                if len(app.state.history) == wanted:
                    break
            return await look(app, pilot)


async def test_a_replay_shows_what_the_screen_showed(
    lab: Lab, veth: Link, tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / "x.ndjson"
    driver = Path(__file__).with_name("screen_driver.py")
    env = ("env", f"PYTHONPATH={REPOSITORY}", interpreter(), str(driver), veth.a.name, str(path), str(FRAMES))
    lab.check(veth.a.ns, veth.a.name)
    ping = veth.a.ns.spawn("ping", "-q", "-i", "0.2", veth.b.v6)
    with answering(veth.b) as server:
        client = asking(veth.a, server, flows=6, interval_s=0.01, seconds=60)
        try:
            seen = json.loads(run(veth.a.ns.argv(list(env)), timeout=90).stdout)
        finally:
            client.stop()
            ping.stop()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setattr("nettop.core.charset._started_with", lambda: {"LANG": "C.UTF-8"})
    again = await replayed(str(path), seen["time_ns"])
    live = "\n".join(row for rows in seen["views"].values() for row in rows)
    for part in ("rx ", veth.b.v4, veth.b.v6, "client", "received", "NET_RX"):
        assert part in live, part  # there was something to show
    assert "drawing failed" not in live
    for name in VIEWS:
        assert again[name] == seen["views"][name], name

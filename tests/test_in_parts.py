"""Parts of a long measurement: time shares, failures, going on, the table; with fake parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def python(*lines: str) -> tuple[str, ...]:
    return ("-c", "\n".join(lines))


def say(**facts: Any) -> str:
    return f"print({json.dumps(facts)!r}, flush=True)"


HANG = "import time; time.sleep(60)"


def test_no_part_stops_the_others_and_all_stand_in_the_table(script, tmp_path):
    p = script("in_parts")
    parts = [
        p.Part(name="good", words=python(say(figure="41"), say(figure="42")), share=0.5),
        p.Part(name="fast", words=python(say(ratio=3.1, ratio_min=3, ratio_max=4), say(ratio=9)),
               share=0.5),
        p.Part(name="bad", words=python(say(figure="half"), "raise ValueError('no luck')"),
               share=0.5),
        p.Part(name="hangs", words=python(say(figure="step 3"), HANG), share=0.02, least=1),
        p.Part(name="not-here", words=("x",), share=0.5, refusal="timm is missing; install timm"),
        p.Part(name="no-such", words=python(say(skipped="there is no such budget")), share=0.5),
        p.Part(name="last", words=python("print('no JSON {'); print(7)"), share=1.0),
    ]  # fmt: skip
    records = list(p.run_parts(parts, tmp_path, 1))
    states = ["finished", "finished", "failed", "stopped", "skipped", "skipped", "finished"]
    assert [record["state"] for record in records] == states
    assert records == p.standing(parts, tmp_path)
    assert [json.loads(part.path(tmp_path).read_text()) for part in parts] == records
    assert records[2]["error"].splitlines()[-1] == "ValueError: no luck"
    assert "Traceback" in records[2]["error"] and records[6]["found"] == []
    rows = p.table(records).splitlines()
    assert rows[0].split() == ["part", "state", "seconds", "figure"]
    shown = [row.split(maxsplit=3)[3:] for row in rows[1:]]
    assert shown == [
        ["42"], ["3.1 x (3 to 4)"], ["half; ValueError: no luck"],
        ["step 3; ran out of its 1 s"], ["timm is missing; install timm"],
        ["there is no such budget"], [],
    ]  # fmt: skip
    assert not list(tmp_path.glob(".*.part"))


def test_each_part_has_its_share_of_what_is_left(script, tmp_path):
    p = script("in_parts")
    shares = [0.5, 0.25, 0.001, 1.0]
    parts = [p.Part(name=f"p{n}", words=("-c", ""), share=s) for n, s in enumerate(shares)]
    limits = [record["limit_s"] for record in p.run_parts(parts, tmp_path, 10)]
    assert limits == pytest.approx([300, 150, 20, 600], abs=4)  # the third has its least
    for part in parts:
        part.path(tmp_path).unlink()
    later = [record["limit_s"] for record in p.run_parts(parts, tmp_path, 10, start=7)]
    assert later == pytest.approx([307, 158.75, 27, 628], abs=4)  # starting took none of it
    spent = p.Part(name="spent", words=("-c", "import time; time.sleep(2)"), share=1.0)
    records = list(p.run_parts([spent, parts[0]], tmp_path, 6 / 60, start=3))
    assert [record["state"] for record in records] == ["finished", "finished"]  # 3 s were free


def test_what_there_is_no_time_for_is_said_and_begun_by_the_next_call(script, tmp_path):
    p = script("in_parts")
    parts = [
        p.Part(name="a", words=python(HANG), share=1.0, least=0.1),
        p.Part(name="b", words=python(say(figure="there")), share=1.0),
    ]
    records = list(p.run_parts(parts, tmp_path, 6 / 60))
    assert [record["state"] for record in records] == ["stopped", "no time"]
    assert 4 < records[0]["seconds"] < 9
    again = list(p.run_parts(parts, tmp_path, 0))  # nothing is begun, nothing forgotten
    assert [record["state"] for record in again] == ["stopped", "no time"]
    assert again[0]["seconds"] == records[0]["seconds"]
    assert [r["state"] for r in p.run_parts(parts[1:], tmp_path, 1)] == ["finished"]


def test_a_second_call_goes_on(script, tmp_path):
    p = script("in_parts")
    log = tmp_path / "log"
    note = f"open({str(log)!r}, 'a').write"
    parts = [
        p.Part(name="done", words=python(f"{note}('d')", say(figure="1")), share=0.5),
        p.Part(name="mended", words=python(
            f"{note}('m')", f"assert open({str(log)!r}).read().count('m') > 1"), share=0.5),
    ]  # fmt: skip
    assert [r["state"] for r in p.run_parts(parts, tmp_path, 1)] == ["finished", "failed"]
    first = json.loads(parts[1].path(tmp_path).read_text())["seconds"]
    records = list(p.run_parts(parts, tmp_path, 1))
    assert [record["state"] for record in records] == ["finished", "finished"]
    assert log.read_text() == "dmm" and records[1]["seconds"] > first > 0
    other = p.Part(name="done", words=python(f"{note}('o')"), share=0.5)  # another measurement
    assert p.standing([other], tmp_path)[0]["state"] == "waiting"
    list(p.run_parts([other], tmp_path, 1))
    assert log.read_text() == "dmmo"
    parts[1].path(tmp_path).write_text("{")  # damaged: measured again
    assert [r["state"] for r in p.run_parts(parts, tmp_path, 1)] == ["finished", "finished"]
    assert log.read_text() == "dmmodm"
    record = json.loads(parts[0].path(tmp_path).read_text()) | {"state": "running"}
    parts[0].path(tmp_path).write_text(json.dumps(record))  # its call was killed
    assert p.standing(parts, tmp_path)[0]["state"] == "stopped"
    assert [r["state"] for r in p.run_parts(parts, tmp_path, 1)] == ["finished", "finished"]
    assert log.read_text() == "dmmodmd"


def alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_part_that_ignores_its_end_is_killed_with_its_children(script, tmp_path, monkeypatch):
    p = script("in_parts")
    monkeypatch.setattr(p, "GRACE", 0.5)
    deaf = ["import os, signal, subprocess, sys", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"]
    child = f"subprocess.Popen([sys.executable, '-c', {HANG!r}])"
    words = python(*deaf, f"print('{{\"pids\": [%d, %d]}}' % (os.getpid(), {child}.pid))",
                   "sys.stdout.flush()", HANG)  # fmt: skip
    (record,) = p.run_parts([p.Part(name="deaf", words=words, share=0.01, least=1.5)], tmp_path, 1)
    assert record["state"] == "stopped" and record["seconds"] < 8
    pids = record["found"][0]["pids"]
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


DRIVER = """
import sys
sys.path.insert(0, {place!r})
import gpu
from in_parts import Part
code = "import os, time; open({out!r} + '/pid', 'w').write(str(os.getpid())); time.sleep(60)"
gpu.plan = lambda *args: [Part(name="long", words=("-c", code), share=1.0),
                          Part(name="later", words=("-c", ""), share=1.0)]
gpu.machine = lambda: {{"gpu": False, "start_s": 0.0}}
sys.argv = ["gpu.py", "--out", {out!r}, "--minutes", "1"]
sys.exit(gpu.main())
"""


def test_a_part_does_not_outlive_a_call_that_was_killed(tmp_path):
    code = DRIVER.format(place=str(BENCHMARKS), out=str(tmp_path))
    call = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert call.poll() is None
        time.sleep(0.05)
    part = int((tmp_path / "pid").read_text())
    assert alive(part)
    call.kill()
    call.wait()
    deadline = time.monotonic() + 5
    while alive(part) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(part)
    assert json.loads((tmp_path / "long.json").read_text())["state"] == "running"


def test_a_polite_end_leaves_what_there_is_and_one_call_has_the_folder(tmp_path):
    code = DRIVER.format(place=str(BENCHMARKS), out=str(tmp_path / "out"))
    command = [sys.executable, "-c", code]
    one = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    path = tmp_path / "out" / "long.json"
    while not path.exists():
        assert one.poll() is None
        time.sleep(0.05)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert "another call is at work" in second.stderr
    time.sleep(0.5)
    os.kill(one.pid, signal.SIGTERM)
    said, _ = one.communicate(timeout=20)
    assert one.returncode == 143
    rows = [line.split() for line in said.splitlines()[-2:]]
    assert [row[:2] for row in rows] == [["long", "stopped"], ["later", "waiting"]]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [part["state"] for part in summary["parts"]] == ["stopped", "waiting"]
    assert json.loads(path.read_text())["state"] == "stopped"

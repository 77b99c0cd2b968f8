"""``shmtensor gc``: it removes what the dead left behind, and never a name in use, whoever comes and goes meanwhile."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from support import (
    SECONDS,
    Crew,
    environment,
    hear,
    not_permitted,
    own_dev_shm,
    path_of,
    python,
    talking,
    unique_name,
    wait_until,
)

import shmtensor as st
from shmtensor._core import sweep
from shmtensor.cli import main

NUMBER = ((), "int64")
GC = (sys.executable, "-m", "shmtensor", "gc")
FOREVER = 10**9

OWNER = """
import os, signal, sys
import shmtensor as st
kept = []
for name in sys.argv[2:]:
    kept.append(st.TensorBuffer.create(((), "int64"), slots=2, name=name))
    kept.append(st.SharedTensor.zeros(3, "int32", name=name + "-tensor"))
    kept[-2].put(5)
print("in", flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True, scope="module")
def dev_shm() -> Iterator[None]:
    with own_dev_shm():
        yield


@contextlib.contextmanager
def owner(*names: str) -> Iterator[subprocess.Popen[str]]:
    with talking(OWNER, "stay", *names) as process:
        assert process.stdout and process.stdout.readline() == "in\n"
        yield process


def leave_dead(*names: str) -> None:
    with talking(OWNER, "kill", *names) as process:
        process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGKILL


def gc(*options: str, wrapper: tuple[str, ...] = (), status: int = 0) -> str:
    """What the command prints; in this process, unless it is to run within something."""
    if not wrapper:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["gc", *options]) == status
        return out.getvalue()
    done = subprocess.run([*wrapper, *GC, *options], env=environment(), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def states(*options: str, wrapper: tuple[str, ...] = ()) -> dict[str, str]:
    return {row["name"]: row["state"] for row in json.loads(gc("--json", *options, wrapper=wrapper))}


@pytest.fixture
def name() -> Iterator[str]:
    name = unique_name()
    yield name
    for path in (path_of(name), path_of(name + "-tensor")):
        path.unlink(missing_ok=True)


# ---- what it says and does -------------------------------------------------------------------------------------------


def test_the_stale_go_and_the_living_stay(name: str) -> None:
    live, own = unique_name(), unique_name()
    dead = {name, name + "-tensor"}
    with owner(live), st.TensorBuffer.create(NUMBER, name=own) as buffer:
        leave_dead(name)
        before = states("--dry-run")
        assert {n: before.get(n) for n in dead} == dict.fromkeys(dead, "stale")
        assert (before[live], before[live + "-tensor"], before[own]) == ("in use",) * 3
        assert all(path_of(n).exists() for n in dead)

        rows = {row["name"]: row for row in json.loads(gc("--json"))}
        assert {n: rows[n]["state"] for n in dead} == dict.fromkeys(dead, "removed")
        assert rows[live]["state"] == rows[own]["state"] == "in use"
        assert all(row["nbytes"] >= 4096 and row["nbytes"] % 4096 == 0 for row in rows.values())
        assert not any(path_of(n).exists() for n in dead)

        assert not dead & set(states())
        buffer.put(1)
        assert buffer.get(timeout=0, copy=True) == 1
        with st.TensorBuffer.attach(live) as other:
            assert other.get(timeout=0, copy=True) == 5


def test_what_people_read(name: str) -> None:
    with owner(name + "-live"):
        leave_dead(name)
        lines = gc("--dry-run").splitlines()
        assert any(line.startswith("stale ") and line.endswith(f" {name}") for line in lines)
        assert any(line.startswith("in use ") and line.endswith(f" {name}-live") for line in lines)
        assert " segments stale, " in lines[-1]
        lines = gc().splitlines()
        assert any(line.startswith("removed ") and line.endswith(f" {name}") for line in lines)
        assert " segments removed, " in lines[-1] and not lines[-1].startswith("0 of")
        assert not path_of(name).exists()


def test_what_is_not_ours_is_neither_named_nor_touched(name: str, tmp_path: Path) -> None:
    """A segment's very bytes included, where we would not open it ourselves."""
    with st.TensorBuffer.create(NUMBER, name=name):
        image = path_of(name).read_bytes()
    files = {suffix: path_of(f"{name}.{suffix}") for suffix in ("text", "short", "open", "link", "pipe", "folder")}
    files["text"].write_bytes(b"my notes" * 1000)
    files["short"].write_bytes(image[:4])
    files["open"].write_bytes(image)
    (tmp_path / "elsewhere").write_bytes(image)
    (tmp_path / "elsewhere").chmod(0o600)
    files["link"].symlink_to(tmp_path / "elsewhere")
    os.mkfifo(files["pipe"], 0o600)
    files["folder"].mkdir(0o700)
    unprefixed = Path("/dev/shm") / name
    unprefixed.write_bytes(image)
    for path in (files["text"], files["short"], unprefixed):
        path.chmod(0o600)
    files["open"].chmod(0o644)
    if os.geteuid() == 0:
        files["other"] = path_of(f"{name}.other")
        files["other"].write_bytes(image)
        files["other"].chmod(0o600)
        os.chown(files["other"], 12345, 12345)
    try:
        for options in (("--dry-run",), ()):
            assert not [n for n in states(*options) if n.startswith(f"{name}.") or n == name]
        assert all(os.path.lexists(path) for path in [*files.values(), unprefixed])
        assert files["open"].read_bytes() == unprefixed.read_bytes() == (tmp_path / "elsewhere").read_bytes() == image
    finally:
        files.pop("folder").rmdir()
        for path in [*files.values(), unprefixed]:
            path.unlink()


def test_a_segment_of_nobody_is_stale_however_it_came(name: str) -> None:
    """The counterpart of the test above: the same bytes, in a plain file of our own."""
    with st.TensorBuffer.create(NUMBER, name=name):
        image = path_of(name).read_bytes()
    path_of(name).write_bytes(image)
    path_of(name).chmod(0o600)
    assert states()[name] == "removed"
    assert not path_of(name).exists()


def test_a_stopped_member_is_alive(name: str) -> None:
    with owner(name) as process:
        process.send_signal(signal.SIGSTOP)
        assert states()[name] == "in use"
        process.kill()
        process.wait()
        assert states()[name] == "removed"


def test_a_child_that_took_part_keeps_it(name: str) -> None:
    """The creator is dead; its forked child is a member of its own."""
    code = """
import os, signal, sys
import shmtensor as st
buffer = st.TensorBuffer.create(((), "int64"), slots=2, name=sys.argv[1])
buffer.put(8)
if os.fork():
    os.wait()
else:
    buffer.stats()
    print("in", flush=True)
    os.kill(os.getppid(), signal.SIGKILL)
    sys.stdin.readline()
    buffer.close()
"""
    with talking(code, name) as process:
        assert process.stdout and process.stdin and process.stdout.readline() == "in\n"
        process.wait(SECONDS)
        assert states()[name] == "in use"
        with st.TensorBuffer.attach(name) as buffer:
            assert buffer.get(timeout=0, copy=True) == 8
        process.stdin.write("\n")
        process.stdin.flush()
        assert wait_until(lambda: not path_of(name).exists())


@pytest.mark.parametrize("inside", ["the owner", "gc"])
def test_across_pid_namespaces(name: str, inside: str) -> None:
    """Pids mean nothing there; locks do."""
    wrapper = ("unshare", "--pid", "--fork", "--kill-child")
    if why := not_permitted(*wrapper, "true"):
        pytest.skip(why)
    around: tuple[str, ...] = wrapper if inside == "the owner" else ()
    command = [*around, sys.executable, "-c", OWNER, "stay", name]
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"in\n"
            around = () if inside == "the owner" else wrapper
            assert states(wrapper=around)[name] == "in use"
            assert path_of(name).exists()
        finally:
            process.kill()
        # Before its input ends, or it would leave in good order.
        assert wait_until(lambda: states("--dry-run", wrapper=around)[name] == "stale")
    assert states(wrapper=around)[name] == "removed"


@pytest.mark.parametrize("by", ["gc", "creation"])
def test_a_name_can_be_created_anew_after_a_crash(name: str, by: str) -> None:
    for number in range(3):
        leave_dead(name)
        if by == "gc":
            assert states()[name] == "removed"
        with st.TensorBuffer.create(NUMBER, name=name) as buffer:
            buffer.put(number)
            assert states()[name] == "in use"
            with st.TensorBuffer.attach(name) as other:
                assert other.get(timeout=0, copy=True) == number
        assert not path_of(name).exists()


def test_unlink_frees_the_name_at_once(name: str) -> None:
    with st.TensorBuffer.create(NUMBER, name=name) as first:
        first.unlink()
        with st.TensorBuffer.create(NUMBER, name=name) as second:
            with pytest.raises(FileNotFoundError):
                first.unlink()
            assert states()[name] == "in use"
            first.close()
            assert path_of(name).exists()
            second.put(1)
    assert not path_of(name).exists()


def test_no_dev_shm() -> None:
    wrapper = ("unshare", "--mount")
    if why := not_permitted(*wrapper, "mount", "-t", "tmpfs", "none", "/dev/shm"):
        pytest.skip(why)
    hidden = (*wrapper, "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
    assert gc(wrapper=hidden, status=1).startswith("shmtensor gc: ")


def test_what_cannot_be_looked_at_is_an_error(name: str) -> None:
    """Out of descriptors, nothing would be found to be stale."""
    code = """
import os, resource
from shmtensor.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    os.close(taken.pop())
print(main(["gc"]))
"""
    leave_dead(name)
    assert python(code) == "1\n"
    assert path_of(name).exists()


def test_without_a_command_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "usage:" in said.err
    assert re.search(r"^\s+gc\s", said.err, re.M)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"shmtensor {st.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "shmtensor", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"shmtensor {st.__version__}\n"


# ---- while others come and go ----------------------------------------------------------------------------------------


def sweeps(connection: Connection, prefix: str, dry_run: bool) -> None:
    """Sweeps when told to, and says what it found under names of that prefix."""
    while connection.recv():
        connection.send([(name, stale) for name, stale in sweep(dry_run) if name.startswith(prefix)])


def test_several_at_once() -> None:
    """Each of the dead is removed by one; nobody takes it for a living one meanwhile."""
    prefix = unique_name("many")
    with Crew() as crew, owner(prefix + "-live"):
        ends = [crew.start(sweeps, prefix, dry_run) for dry_run in (False, False, True)]
        for number in range(8):
            names = [f"{prefix}-{number}-{k}" for k in range(8)]
            leave_dead(*names)
            for end in ends:
                end.send(True)
            *removers, seen = ([row for row in hear(end)] for end in ends)
            for found in (*removers, seen):
                assert {name for name, stale in found if not stale} == {f"{prefix}-live", f"{prefix}-live-tensor"}
            removed = [name for found in removers for name, stale in found if stale]
            assert sorted(removed) == sorted(names + [n + "-tensor" for n in names])
            assert not any(path_of(n).exists() for n in removed)
        for end in ends:
            end.send(False)


def named(buffer: st.TensorBuffer) -> bool:
    """Does the buffer's name lead to this very segment?"""
    try:
        at, ours = path_of(buffer.name or "").stat(), os.fstat(buffer._fd)
    except FileNotFoundError:
        return False
    return (at.st_ino, at.st_dev) == (ours.st_ino, ours.st_dev)


def creates(connection: Connection, name: str, seconds: float) -> None:
    """Whoever has created a buffer and not closed it has its name."""
    made = lost = 0
    for _ in turns(seconds):
        try:
            buffer = st.TensorBuffer.create(NUMBER, slots=2, name=name)
        except FileExistsError:
            continue
        buffer.put(made)
        lost += not named(buffer)
        buffer.close()
        made += 1
    connection.send((made, lost))


def attaches(connection: Connection, name: str, seconds: float) -> None:
    """Whoever is in is in a segment that has its name."""
    made = lost = 0
    for _ in turns(seconds):
        try:
            buffer = st.TensorBuffer.attach(name)
        except FileNotFoundError:
            continue
        except st.ShmError as e:  # the last one out was interrupted for more than 20 ms, all places in hand
            assert "members=" in str(e)
            continue
        lost += not named(buffer)
        buffer.stats()
        buffer.close()
        made += 1
    connection.send((made, lost))


def collects(connection: Connection, name: str, seconds: float) -> None:
    count = 0
    for turn in turns(seconds):
        sweep(turn % 4 == 0)
        count += 1
    connection.send((count, 0))


def dies(name: str) -> None:
    """Creates and attaches until it is killed."""
    for turn in range(FOREVER):
        with contextlib.suppress(OSError, st.ShmError):
            buffer = st.TensorBuffer.attach(name) if turn % 2 else st.TensorBuffer.create(NUMBER, slots=2, name=name)
            buffer.close()


def turns(seconds: float) -> Iterator[int]:
    end = time.monotonic() + seconds
    for turn in range(FOREVER):
        if time.monotonic() > end:
            return
        yield turn


def test_a_sweep_meets_creations_attachments_and_deaths() -> None:
    name, seconds = unique_name("race"), 3.0
    with Crew() as crew:
        ends = [crew.start(work, name, seconds) for work in (creates, attaches, collects, collects)]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            victim = crew.context.Process(target=dies, args=(name,))
            victim.start()
            time.sleep(random.random() * 0.03)
            victim.kill()
            victim.join()
            victim.close()
        found = [hear(end) for end in ends]
    assert all(made > 0 for made, _ in found), found
    assert sum(lost for _, lost in found) == 0, found
    sweep()
    assert not path_of(name).exists()

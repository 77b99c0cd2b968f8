"""Whatever runs out - pages, inodes, descriptors, address space, file size, memory - is a typed error naming the knob.

Never a signal, and nothing is left behind. The programs below run by themselves: a SIGBUS, or the OOM killer, would
take the tests along. tests/c/test_faults.c and tests/c/test_groups.c do the same below Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, not_permitted, python, unique_name

OWN_DEV_SHM = ("unshare", "--mount")

# What all programs here begin with.
PRELUDE = """
import ctypes, errno, os, re, signal, subprocess, sys
import numpy as np
import shmtensor as st

ours = [arg for arg in sys.argv[1:] if arg.startswith("test-")] or [""]  # without a name /dev/shm is our own

def left():
    files = sorted(file for file in os.listdir("/dev/shm") if any(name in file for name in ours))
    maps = [line for line in open("/proc/self/maps") if "/dev/shm" in line or "memfd:" in line]
    return files, len(os.listdir("/proc/self/fd")), len(maps)

libc = ctypes.CDLL(None, use_errno=True)
def mount(options):
    assert libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, options.encode()) == 0, os.strerror(ctypes.get_errno())

def refused(make, *knobs, error=st.ShmNoSpaceError):
    '''Whether it was; every knob must be in the message.'''
    try:
        make().close()
    except error as e:
        for knob in knobs:
            assert re.search(knob, str(e)), (knob, str(e))
        return True
    return False
"""


def run(program: str, *args: str, wrapper: tuple[str, ...] = ()) -> str:
    return python(PRELUDE + program, *args, wrapper=wrapper)


def needs_own_dev_shm() -> None:
    if why := not_permitted(*OWN_DEV_SHM, "mount", "-t", "tmpfs", "none", "/dev/shm"):
        pytest.skip(why)


# ---- pages and inodes of /dev/shm ------------------------------------------------------------------------------------

PAGES = """
def fixed():
    buffer = st.TensorBuffer.create(((5000,), "uint8"), slots=3, members=8, name="n")
    for i in range(3):
        buffer.put(np.full(5000, i, "uint8"))
    assert [int(buffer.get(copy=True)[4999]) for _ in range(3)] == [0, 1, 2]
    return buffer

def tensor():
    return st.SharedTensor.full(30_000, 7, "uint8", name="n", members=8)

def lazy():
    tensor = st.SharedTensor.empty(30_000, "uint8", name="n", members=8, prefault=False)
    tensor.numpy()[:] = 9
    return tensor

def growing():
    '''Grows until it is refused, item by item; what was put is whole, and small items still fit.'''
    global grown
    buffer = st.TensorBuffer.create(((None,), "uint8"), slots=3, members=8, name="n", max_slot_nbytes=1 << 20)
    try:
        for size in range(1000, 400_000, 50_000):
            buffer.put(np.full(size, size % 251, "uint8"))
            item = buffer.get(copy=True)
            assert len(item) == size and (item == size % 251).all()
            grown = max(grown, size)
    except st.ShmNoSpaceError as e:
        assert buffer.stats()["free"] == 3, buffer.stats()
        if size > 1000:
            buffer.put(np.full(900, 5, "uint8"))
            assert len(buffer.get(copy=True)) == 900
        buffer.close()
        raise
    return buffer

grown = 0
for make in (fixed, tensor, lazy, growing):
    outcomes = []
    for pages in range(0, 400):
        mount(f"size={max(pages, 1) * 4096}")  # 0 would be no limit
        if pages == 0:
            with open("/dev/shm/filler", "wb") as f:
                f.write(bytes(4096))
        before = left()
        outcomes.append(refused(make, "--shm-size", "bytes in /dev/shm", "bytes wanted|more memory"))
        assert left() == before, (make, pages, before, left())
        subprocess.check_call(["umount", "/dev/shm"])
        if not outcomes[-1]:
            break
    # Refused up to some size of /dev/shm, and from there on not.
    assert outcomes.count(False) == 1 and len(outcomes) > 8, outcomes
    print(make.__name__, len(outcomes) - 1)
assert grown > 200_000
"""


def test_dev_shm_of_every_size() -> None:
    """From no page to enough: at each allocation in turn there is one page too few."""
    needs_own_dev_shm()
    out = run(PAGES, wrapper=OWN_DEV_SHM)
    print(out)
    assert [line.split()[0] for line in out.splitlines()] == ["fixed", "tensor", "lazy", "growing"]


OTHER_SHORTAGES = """
def named():
    return st.TensorBuffer.create(((), "int64"), slots=2, members=8, name="n")

def anonymous():
    return st.TensorBuffer.create(((), "int64"), slots=2, members=8)

mount("nr_inodes=2")
open("/dev/shm/one", "w").close()
before = left()
assert refused(named, "no inode", "nr_inodes=")
assert left() == before and not refused(anonymous)
subprocess.check_call(["umount", "/dev/shm"])

mount("size=1m")
subprocess.check_call(["mount", "-o", "remount,ro", "/dev/shm"])
before = left()
assert refused(named, "/dev/shm must be a tmpfs that this user may write to", "name=", error=OSError)
assert left() == before and not refused(anonymous)
subprocess.check_call(["umount", "/dev/shm"])

mount("size=1m,mode=0755")
os.setuid(12345)
before = left()
assert refused(named, "/dev/shm must be a tmpfs that this user may write to", error=PermissionError)
assert left() == before and not refused(anonymous)
print("done")
"""


def test_no_inode_and_no_permission() -> None:
    needs_own_dev_shm()
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    assert run(OTHER_SHORTAGES, wrapper=OWN_DEV_SHM) == "done\n"


# ---- each system call ------------------------------------------------------------------------------------------------

FAULTS = """
shim = ctypes.CDLL(sys.argv[1])
shim.faults_what.restype, shim.faults_heap.restype = ctypes.c_char_p, ctypes.c_bool
number, loose = ((), "int64"), ((None,), "uint8")
name = sys.argv[2]
owner = None

def grows():
    item = np.full(300_000, 7, "uint8")
    with st.TensorBuffer.create(loose, slots=2, members=8) as buffer:
        arm()
        try:
            buffer.put(item)
        except BaseException:
            disarm()
            buffer.put(item)
            assert buffer.stats()["publishes"] == 1
            raise
        finally:
            disarm()
            assert len(buffer.get(copy=True)) == 300_000 and buffer.stats()["free"] == 2

def reads():
    '''What another mapping had grown.'''
    with st.TensorBuffer.create(loose, slots=2, members=8, name=name) as buffer, st.TensorBuffer.attach(name) as other:
        buffer.put(np.full(300_000, 7, "uint8"))
        arm()
        try:
            item = other.get(timeout=0, copy=True)
        except BaseException:
            disarm()
            item = other.get(timeout=0, copy=True)
            raise
        finally:
            disarm()
            assert len(item) == 300_000 and buffer.stats()["free"] == 2

def opens(make):
    def verb():
        arm()
        thing = make()
        disarm()
        thing.close()
    return verb

def with_owner(verb):
    def around():
        with st.TensorBuffer.create(number, slots=2, members=8, name=name) as owner:
            globals()["owner"] = owner
            try:
                verb()
            finally:
                disarm()
            owner.put(1)
            assert owner.get(copy=True) == 1
    return around

def unlinks():
    arm()
    owner.unlink()

VERBS = {
    "create": opens(lambda: st.TensorBuffer.create(number, slots=2, members=8)),
    "create by name": opens(lambda: st.TensorBuffer.create(number, slots=2, members=8, name=name)),
    "create, growing": opens(lambda: st.TensorBuffer.create(loose, slots=2, members=8)),
    "create, large": opens(lambda: st.SharedTensor.zeros(1 << 20, "uint8")),
    "attach": with_owner(opens(lambda: st.TensorBuffer.attach(name))),
    "attach by descriptor": with_owner(opens(lambda: st.TensorBuffer._from_fd(owner._fd))),
    "unlink": with_owner(unlinks),
    "grow": grows,
    "read": reads,
}
ERRORS = {
    errno.ENOSPC: (st.ShmNoSpaceError, "--shm-size|memory limit"),
    errno.ENOMEM: (st.ShmNoSpaceError, "ulimit -v|max_map_count"),
    errno.EMFILE: (OSError, "ulimit -n"),
    errno.EACCES: (PermissionError, "tmpfs that this user|policy|not trusted|Permission denied"),
    errno.EINTR: (InterruptedError, "try again"),
}

def arm():
    shim.faults_arm(fail, code, and_after)

def disarm():
    return shim.faults_disarm()

def judge(e, what):
    '''Is this the error to expect?'''
    if shim.faults_heap() and isinstance(e, st.ShmNoSpaceError):
        return re.search("ulimit -v|max_map_count", str(e))
    if code == errno.EACCES and what == "fcntl":  # "locked by somebody", on some systems
        return isinstance(e, (st.ShmError, OSError))
    if isinstance(e, FileNotFoundError):  # what cannot be looked at is not there
        return verb == "unlink"
    error, knob = ERRORS[code]
    return isinstance(e, error) and e.errno == code and re.search(knob, str(e))

told = calls = 0
for code in ERRORS:
    for and_after in (False, True):
        if and_after and code in (errno.EINTR, errno.EACCES):
            continue
        for verb, call in VERBS.items():
            fail = 1
            while True:
                before, error = left(), None
                try:
                    call()
                except Exception as e:
                    error = e
                reached = disarm() >= fail
                what = shim.faults_what().decode()
                if error is not None:
                    told += 1
                    assert reached and judge(error, what), (verb, fail, what, os.strerror(code), error)
                error = None
                assert left() == before, (verb, fail, what, os.strerror(code), before, left())
                if not reached:
                    break
                fail += 1
                calls += 1
            assert fail > 2, (verb, fail)
print(calls, "calls failed,", told, "errors told")
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The functions of tests/c/faults.h, to be loaded before the C library's, for calls of our extension only."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    source = ROOT / "tests" / "c" / "faults.h"
    command = [compiler, "-D_GNU_SOURCE", '-DFAULTS_OF="/_core."', "-O1", "-shared", "-fPIC", "-x", "c", str(source)]
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        command.insert(1, "-DFAULTS_KEEP_HEAP")
    done = subprocess.run([*command, "-o", str(path), "-ldl"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield path


def test_each_call_that_can_fail(shim: Path) -> None:
    """ENOSPC, ENOMEM, EMFILE, EACCES and EINTR at each call of each verb, once and (where they would) from then on."""
    preload = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(shim)]))
    own = not not_permitted(*OWN_DEV_SHM, "mount", "-t", "tmpfs", "none", "/dev/shm")
    wrapper = (*OWN_DEV_SHM * own, "env", f"LD_PRELOAD={preload}")
    out = run(f"if {own}: mount('size=64m')\n" + FAULTS, str(shim), unique_name(), wrapper=wrapper)
    print(out)
    calls, told = (int(word) for word in out.split() if word.isdigit())
    assert calls > 800 and told > 500


# ---- descriptors -----------------------------------------------------------------------------------------------------

FEW_DESCRIPTORS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
name = sys.argv[1]
made = 0
with st.TensorBuffer.create(((8,), "int64"), slots=8, name=name) as buffer:
    before = left()
    for i in range(100_000):
        buffer.put(np.full(8, i))
        item = buffer.get()
        assert item[7] == i
        del item
        if i % 100 == 0:
            with st.TensorBuffer.attach(name) as other, st.TensorBuffer.create(((), "int64"), slots=2):
                with st.SharedTensor.zeros(3, "int8", name=name + "-2"):
                    other.put(np.full(8, -1))
                assert buffer.get(copy=True)[0] == -1
            made += 3
    assert left() == before
print(made)
"""


def test_few_descriptors_suffice() -> None:
    """64 of them, 100,000 items, 3,000 segments made or joined, and left."""
    assert run(FEW_DESCRIPTORS, unique_name()) == "3000\n"


# ---- address space and file size -------------------------------------------------------------------------------------

ADDRESS_SPACE = """
import resource
from pathlib import Path
name, loose = sys.argv[1], ((None,), "uint8")
with st.SharedTensor.zeros(300 << 20, "uint8", name=name, prefault=False) as tensor:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
    before = left()
    limit = f"may use {used + (200 << 20):,} bytes of address space: raise `ulimit -v`"
    for make in (
        lambda: st.SharedTensor.attach(name),
        lambda: st.SharedTensor.zeros(300 << 20, "uint8", prefault=False),
        lambda: st.SharedTensor.zeros(300 << 20, "uint8", name=name + "-2"),
        lambda: st.TensorBuffer.create(((100 << 20,), "uint8"), slots=3),
        lambda: st.TensorBuffer.create({"a": ((100 << 20,), "uint8"), "b": loose}, slots=3),
    ):
        assert refused(make, re.escape(limit))
        assert left() == before
    # More than there is memory: more address space would be of no use.
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert refused(lambda: st.SharedTensor.zeros(total, "uint8"), f"{total:,} bytes wanted", "memory limit", "are left")
    assert left() == before
    # What can grow grows less far, and says why, to whoever attaches as well.
    with st.TensorBuffer.create(loose, slots=4, name=name + "-3") as buffer:
        size = buffer.slot_nbytes
        assert size < 50 << 20
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with st.TensorBuffer.attach(name + "-3") as other:
            for one in (buffer, other):
                try:
                    one.put(np.zeros(size + 1, "uint8"))
                except ValueError as e:
                    assert "(`ulimit -v`)" in str(e) and "or set max_slot_nbytes=" in str(e), e
                else:
                    raise AssertionError
                one.put(np.zeros(1000, "uint8"))
                assert len(one.get(copy=True)) == 1000
    assert left() == before
print("done")
"""


def test_little_address_space() -> None:
    assert run(ADDRESS_SPACE, unique_name()) == "done\n"


FILE_SIZE = """
import resource
name, loose = sys.argv[1], ((None,), "uint8")
# As in a program that embeds Python; Python itself ignores the signal, which then is an error of the call.
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
with st.SharedTensor.full(8 << 20, 3, "uint8", name=name) as tensor:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    before = left()
    for called in (None, name + "-2"):
        for make in (
            lambda: st.SharedTensor.zeros(2 << 20, "uint8", name=called),
            lambda: st.TensorBuffer.create(((1 << 18,), "uint8"), slots=8, name=called),
            lambda: st.TensorBuffer.create({"a": ((1 << 19,), "uint8"), "b": loose}, slots=3, name=called),
        ):
            assert refused(make, "bytes wanted", "files of at most 1,048,576 bytes", "ulimit -f", "RLIMIT_FSIZE")
            assert left() == before
        with st.TensorBuffer.create(loose, slots=3, name=called) as buffer:
            size = buffer.slot_nbytes
            assert 1 << 17 <= size < 1 << 19, size
            try:
                buffer.put(np.zeros(size + 1, "uint8"))
            except ValueError as e:
                assert "ulimit -f" in str(e), e
            else:
                raise AssertionError
            buffer.put(np.full(size // 2, 7, "uint8"))
            assert buffer.get(copy=True).min() == 7
        with st.TensorBuffer.create(((1 << 17,), "uint8"), slots=6, name=called) as buffer:
            buffer.put(np.full(1 << 17, 7, "uint8"))
        assert left() == before
    # What exists may be larger.
    with st.SharedTensor.attach(name) as other:
        assert other.numpy().min() == 3
print("done")
"""


def test_a_limited_file_size() -> None:
    """Shared memory is a file: RLIMIT_FSIZE counts, and its signal does not end the process."""
    assert run(FILE_SIZE, unique_name()) == "done\n"


# ---- signals ---------------------------------------------------------------------------------------------------------

STORM = """
import threading, time
count = 0
def handler(number, frame):
    global count
    count += 1
signal.signal(signal.SIGALRM, handler)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)

def counted(what):
    # Signals came during that, and their handlers ran.
    begin = count
    what()
    assert count > begin, what

before = left()
def creates():
    for named in (None, sys.argv[1]):
        with st.SharedTensor.zeros(128 << 20, "uint8", name=named) as tensor:
            tensor.numpy()[::4096] = 1
        with st.TensorBuffer.create(((16 << 20,), "uint8"), slots=8, name=named) as buffer:
            buffer.put(np.full(16 << 20, 9, "uint8"))
            assert buffer.get(copy=True)[-1] == 9
counted(creates)

def grows():
    with st.TensorBuffer.create(((None,), "uint8"), slots=2) as buffer:
        for size in (1 << 20, 8 << 20, 64 << 20):
            buffer.put(np.full(size, 7, "uint8"))
            assert buffer.get(copy=True).sum(dtype="int64") == 7 * size
counted(grows)

def waits():
    with st.TensorBuffer.create(((), "int64"), slots=2, spin_us=0) as buffer:
        def feed():
            for i in range(100):
                time.sleep(0.002)
                buffer.put(i)
        thread = threading.Thread(target=feed)
        thread.start()
        assert [int(buffer.get(timeout=60, copy=True)) for _ in range(100)] == list(range(100))
        thread.join()
        begin = time.monotonic()
        try:
            buffer.get(timeout=0.2)
        except TimeoutError:
            assert time.monotonic() - begin >= 0.2  # and no signal ends it early
        else:
            raise AssertionError
        buffer.put(1), buffer.put(2)
        try:
            buffer.claim(timeout=0.05)
        except TimeoutError:
            pass
        else:
            raise AssertionError
counted(waits)

def forks():
    with st.TensorBuffer.create(((), "int64"), slots=2) as buffer:
        for i in range(20):
            pid = os.fork()
            if pid == 0:
                signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)  # a child has no timer
                buffer.put(i)
                os._exit(0)
            assert int(buffer.get(timeout=60, copy=True)) == i
            assert os.waitpid(pid, 0)[1] == 0
        buffer.reclaim()
        assert buffer.stats()["free"] == 2
counted(forks)
signal.setitimer(signal.ITIMER_REAL, 0)
assert left() == before
print("done")
"""


def test_a_storm_of_signals() -> None:
    """One each millisecond, whose handler is Python: everything finishes, and the handlers run."""
    assert run(STORM, unique_name()) == "done\n"


# ---- control groups --------------------------------------------------------------------------------------------------

LIMIT = 320 << 20

IN_A_GROUP = """
with open(sys.argv[1] + "/cgroup.procs", "w") as f:
    f.write(str(os.getpid()))
from shmtensor._core import memory_left
limit = int(sys.argv[2])
assert memory_left() <= limit
name = sys.argv[3]
before = left()
for called in (None, name):
    for make in (
        lambda: st.SharedTensor.zeros(limit, "uint8", name=called),
        lambda: st.SharedTensor.zeros(limit, "uint8", name=called, prefault=False),
        lambda: st.TensorBuffer.create(((limit // 4,), "uint8"), slots=8, name=called),
    ):
        assert refused(make, "control group", "bytes of memory are left")
        assert left() == before
    with st.TensorBuffer.create(((None,), "uint8"), slots=64, name=called) as buffer:
        put = 0
        try:
            for put in range(64):  # 512 MiB in all
                slot = buffer.claim()
                slot.empty(None, 8 << 20)[...] = put
                slot.publish()
        except st.ShmNoSpaceError as e:
            assert "control group" in str(e), e
            slot.abort()
        assert 0 < put < 40, put
        assert buffer.stats()["ready"] == put
        for i in range(put):
            item = buffer.get(copy=True)
            assert item[0] == i and item[-1] == i
    assert left() == before
print("alive")
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory control group of our own, below the one that we are in."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    older = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
    unified = [path for _, controllers, path in lines if not controllers]
    mount, file = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes") if older else ("/sys/fs/cgroup", "memory.max")
    path = Path(mount + (older or unified or ["/"])[0]) / f"shmtensor-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as e:
        pytest.skip(f"no control group can be made here: {e}")
    try:
        (path / file).write_text(str(LIMIT))
        yield path
    except OSError as e:
        pytest.skip(f"no memory limit can be set here: {e}")
    finally:
        path.rmdir()


def test_a_control_group_that_is_full(group: Path) -> None:
    """An exception each time; the OOM killer has nothing to do."""
    assert run(IN_A_GROUP, str(group), str(LIMIT), unique_name()) == "alive\n"

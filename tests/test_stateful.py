"""Random sequences of everything that a buffer can do, beside a model of it: stateful_machine.py, in a process of its
own, so that a crash is a failure and not the end of the run, and children can end as interpreters do."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from support import TESTS, environment

#: some 45 steps each; `make stateful` runs enough of them for 10^5 steps
EXAMPLES = int(os.environ.get("SHMTENSOR_STATEFUL_EXAMPLES", "60"))


def test_random_sequences_do_what_the_model_does() -> None:
    done = subprocess.run(
        [sys.executable, str(TESTS / "stateful_machine.py"), str(EXAMPLES)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100 + 3 * EXAMPLES,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    seen = json.loads(done.stdout.splitlines()[-1])
    print(seen)
    assert seen["steps"] > 30 * EXAMPLES
    # What a run of this size does some 20 to 500 times, or it got stuck.
    for what in ("published", "acquired", "aliases", "cycles", "redelivered", "closed with leases", "forks, _exit"):
        assert seen.get(what, 0) > 0, f"nothing of {what!r} was done: {seen}"

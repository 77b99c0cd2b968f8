"""What does waiting cost?"""

import harness

from .bench_handoff import TWO_PROCESSES


class Idle:
    """CPU time of the busiest of four waiters, as a share of a core."""

    params = [list(TWO_PROCESSES)]
    param_names = ["peer"]
    unit = "%"

    def track_cpu_share(self, name):
        return 100 * harness.isolated(harness.idle, TWO_PROCESSES[name], 4, 2.0)

"""The asv suite: a class per question. Everything is prepared and touched in ``setup``; times are wall-clock times,
because most of the work is in other processes.

Each number is lower-is-better, as asv takes it: what is a rate elsewhere is here the time of so many items.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # harness, peers, limit

"""The command line: ``python -m tests.soak kills --kills 10000 --seed 7``, from the root of the repository."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable

from . import kills, long, massacre, mutants, namespaces, recovery, stops
from .crowd import SoakFailed, SoakSkipped
from .report import Progress, as_json, load, table

#: what it runs, how its amount is called, and how much of it the bar asks for
PARTS: dict[str, tuple[Callable[..., dict[str, object]], str, int]] = {
    "kills": (kills.run, "kills", 10_000),
    "storm": (kills.storm, "kills", 10_000),
    "recovery": (recovery.run, "episodes", 1000),
    "stops": (stops.run, "stops", 10_000),
    "massacre": (massacre.run, "massacres", 1000),
    "long": (long.run, "handoffs", 1_000_000_000),
    "namespaces": (namespaces.run, "meetings", 10),
    "mutants": (mutants.run, "mutants", len(mutants.MUTANTS)),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1e9, help="at most so long; at the end of each part's step")
    parser.add_argument("--seed", type=int, default=None, help="what is drawn by chance; the schedule is not")
    parts = parser.add_subparsers(dest="what", required=True)
    for name, (function, amount, bar) in PARTS.items():
        part = parts.add_parser(name, help=(function.__doc__ or "").partition("\n")[0])
        part.add_argument(f"--{amount}", type=int, default=bar)
        part.add_argument("--seconds", type=float, default=argparse.SUPPRESS)
        part.add_argument("--seed", type=int, default=argparse.SUPPRESS)
    args = parser.parse_args()
    function, amount, _ = PARTS[args.what]
    seed = random.SystemRandom().randrange(1 << 31) if args.seed is None else args.seed
    progress = Progress()
    began, load_before = time.monotonic(), load()
    try:
        figures = function(**{amount: getattr(args, amount)}, seconds=args.seconds, seed=seed, progress=progress)
    except SoakFailed as e:
        progress.done()
        print(f"FAILED: {args.what}, --seed {seed}: {e}")
        return 1
    except SoakSkipped as e:
        print(f"SKIPPED: {args.what}: {e}")
        return 77
    except Exception:
        progress.done()
        print(f"FAILED: {args.what}, --seed {seed}: {traceback.format_exc()}")
        return 1
    progress.done()
    figures = {"what": args.what, "seed": seed, **figures}
    figures |= {"seconds": round(time.monotonic() - began, 1), "load before": load_before[0], "load after": load()[0]}
    print(table(figures))
    print(as_json(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

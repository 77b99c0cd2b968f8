"""Branch coverage of csrc/ by whatever has run: the figure, and each branch that nothing took, with its reason.

    report.py FOLDER...      looks for the .gcda files below them, as gcc's --coverage writes them

Exit status 1 below the bar, or if gaps.txt, beside this file, gives no reason for a gap. There a reason is a line that
begins with "= "; the lines below it, "csrc/file.c function(): text of the line", are the branches that it is about.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
GAPS = Path(__file__).with_name("gaps.txt")
BAR = 95.0


class Branch(NamedTuple):
    file: str  #: csrc/...
    line: int
    function: str
    number: int  #: of the branches that begin in the line

    @property
    def text(self) -> str:
        return (ROOT / self.file).read_text().splitlines()[self.line - 1].strip()

    @property
    def place(self) -> str:
        return f"{self.file} {self.function}(): {self.text}"


def read(folders: Iterable[Path]) -> dict[Branch, int]:
    """How often each branch was taken, by all programs together. Each has compiled csrc for itself, without
    optimisation and by one compiler, so that the branches of a line have the same numbers in all of them."""
    taken: defaultdict[Branch, int] = defaultdict(int)
    for data in sorted(path for folder in folders for path in folder.rglob("*.gcda")):
        command = ["gcov", "--json-format", "--stdout", "--branch-probabilities", str(data)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            for file in json.loads(line)["files"]:
                name = file["file"].rpartition("csrc/")[2]
                if f"csrc/{name}" != file["file"] and not file["file"].endswith(f"/csrc/{name}"):
                    continue
                for row in file["lines"]:
                    for number, branch in enumerate(row["branches"]):
                        key = Branch(f"csrc/{name}", row["line_number"], row.get("function_name", ""), number)
                        taken[key] += branch["count"]
    return dict(taken)


def reasons(text: str) -> dict[str, str]:
    """place -> reason."""
    out, reason = {}, ""
    for line in text.splitlines():
        if line.startswith("= "):
            reason = line[2:]
        elif line.startswith("  ") and reason:  # the reason goes on
            reason += " " + line.strip()
        elif line.startswith("csrc/"):
            out[line] = reason
    return out


def main(folders: list[str]) -> int:
    taken = read(map(Path, folders))
    if not taken:
        print("no coverage data in", *folders)
        return 1
    known = reasons(GAPS.read_text())
    gaps = sorted(branch for branch, count in taken.items() if count == 0)
    unexplained = 0
    by_reason: defaultdict[str, list[Branch]] = defaultdict(list)
    for branch in gaps:
        by_reason[known.get(branch.place, "NO REASON GIVEN")].append(branch)
    for reason, branches in by_reason.items():
        print(f"\n{reason}")
        unexplained += len(branches) * (reason == "NO REASON GIVEN")
        for branch in branches:
            print(f"  {branch.file}:{branch.line} {branch.function}() branch {branch.number}: {branch.text}")
    print()
    in_file, missed = Counter(b.file for b in taken), Counter(b.file for b in gaps)
    for name in sorted(in_file):
        print(f"{name:20}{in_file[name] - missed[name]:6} of {in_file[name]:4} branches")
    percent = 100 * (len(taken) - len(gaps)) / len(taken)
    print(f"{'all':20}{len(taken) - len(gaps):6} of {len(taken):4} branches: {percent:.1f} % (the bar is {BAR} %)")
    if unexplained:
        print(f"{unexplained} gaps have no reason in {GAPS.relative_to(ROOT)}")
    return int(percent < BAR or unexplained > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

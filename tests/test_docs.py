"""docs/ against the source: memory-ordering edges, the header's offsets, names of functions, files, links."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import test_weak

import shmtensor

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PROTOCOL = ROOT / "docs" / "protocol.md"
ORDERS = ROOT / "docs" / "memory-order.md"
SOURCES = sorted((ROOT / "csrc").glob("*.[ch]"))

EDGE = re.compile(r"\b[A-Z][0-9]\b")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """The cells of each body row of the tables in one section of docs/protocol.md."""
    section = PROTOCOL.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [row for row in cells[2:] if not set(row[0]) <= set("-:")]


def edges_in_source() -> dict[str, set[str]]:
    """Edge -> names of the files in which a comment names it."""
    out: dict[str, set[str]] = {}
    for path in SOURCES:
        for comment in COMMENT.findall(path.read_text()):
            for edge in EDGE.findall(comment):
                out.setdefault(edge, set()).add(path.name)
    return out


def test_every_edge_is_in_the_table_and_the_reverse() -> None:
    table = [row[0] for row in rows("Edges")]
    assert len(table) == len(set(table))
    assert set(table) == set(edges_in_source())


def test_edges_lie_where_the_table_says() -> None:
    source = edges_in_source()
    for edge, start, end, *_ in rows("Edges"):
        named = set(re.findall(r"`csrc/(\w+\.[ch])`", start + end))
        assert named <= source[edge], edge


def test_each_step_names_edges_of_the_table() -> None:
    known = {row[0] for row in rows("Edges")}
    assert set(EDGE.findall(PROTOCOL.read_text() + ORDERS.read_text())) <= known


def arguments() -> list[tuple[str, str]]:
    """Edge and text of each section of docs/memory-order.md."""
    parts = re.split(r"^### (.+)\n", ORDERS.read_text(), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_every_edge_has_its_argument() -> None:
    assert sorted(edge for edge, _ in arguments()) == sorted(row[0] for row in rows("Edges"))
    for edge, text in arguments():
        assert len(re.findall(r"^\*\*(?:Checked:|Argument only[:,])\*\*", text, re.MULTILINE)) == 1, edge
        assert re.search(r"^    \S", text, re.MULTILINE), f"{edge}: what does it forbid?"


def test_what_is_said_to_be_checked_is_tried() -> None:
    tried: dict[str, set[str]] = {}
    for weaker in test_weak.WEAKER:
        tried.setdefault(weaker.edge, set()).add(weaker.program.file)
    said = {
        edge: set(re.findall(r"`model/weak/(\w+\.c)`", text)) for edge, text in arguments() if "**Checked:**" in text
    }
    assert said == tried


def test_functions_named_in_the_docs_exist() -> None:
    source = "".join(path.read_text() for path in SOURCES)
    for page in PAGES:
        for name in re.findall(r"`(\w+)\(\)`(?= in `csrc/)|`(shmt_\w+)\(\)`", page.read_text()):
            function = "".join(name)
            assert re.search(rf"\b{function}\(", source), f"{page.name}: {function}"


def test_header_offsets(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    fields = [(row[0], row[1].strip("`")) for row in rows("The words") if row[0].isdigit()]
    assert len(fields) >= 10
    check = tmp_path / "offsets.c"
    check.write_text(
        '#include "layout.h"\n'
        + "".join(f'_Static_assert(offsetof(shmt_header, {name}) == {n}, "{name}");\n' for n, name in fields)
    )
    command = [compiler, "-std=c11", "-fsyntax-only", "-I", str(ROOT / "csrc"), str(check)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_figures_are_those_of_stats() -> None:
    with shmtensor.TensorBuffer.create(((1,), "uint8"), slots=1) as buffer:
        keys = {key for row in rows("Figures") for key in re.findall(r"`(\w+)`", row[0])}
        assert keys == set(buffer.stats())


def test_each_promise_names_tests_and_each_test_file_has_a_promise() -> None:
    """docs/promises.md: no claim without its test, and no test that nothing is claimed of."""
    page = (ROOT / "docs" / "promises.md").read_text()
    table = [line for line in page.split("## Promise by promise")[1].split("\n## ")[0].splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert [row[0] for row in rows] == [str(n) for n in range(1, len(rows) + 1)]
    assert len(rows) >= 20
    for number, _, tests in rows:
        named = re.findall(r"`(tests/[\w./]+)`", tests)
        assert named, f"promise {number} names no test"
        assert [name for name in named if not (ROOT / name).exists()] == [], f"promise {number}"
    named = set(re.findall(r"`(tests/[\w./]+)`", page))
    about_the_project = {"demo", "docs", "examples", "lint", "readme", "shared_tensor", "typing"}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")} - about_the_project
    assert {name for name in tests if f"tests/test_{name}.py" not in named} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        titles = [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.+)$", text, re.M)]
        assert anchor in titles, anchor
    for name in re.findall(r"`((?:csrc|shmtensor|tests|docs|examples|benchmarks|model)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


def test_the_site_has_every_page_and_every_public_name() -> None:
    """`make docs` would warn of a name that is not there, but not of what nobody listed."""
    toctree = (ROOT / "docs" / "index.md").read_text().split("```{toctree}")[1].split("```")[0]
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert set(re.findall(r"^(\w[\w-]*)$", toctree, re.M)) == pages
    listed = re.findall(r"^\.\. auto\w+:: shmtensor\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.M)
    lazy = {"DataLoader"}  # needs torch
    assert set(listed) == {name for name in shmtensor.__all__ if not name.startswith("__")} | lazy
    assert len(listed) == len(set(listed))


def test_public_names_in_the_docs_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"\bst\.(\w+)", page.read_text()):
            assert hasattr(shmtensor, name), f"{page.name}: st.{name}"

"""The rules that the C core keeps, as far as a program can see whether they are kept.

Each rule is a function from source text to a list of complaints, and is tried twice: on the sources, and on seeded
snippets that break it.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PXD = ROOT / "shmtensor" / "_cshmt.pxd"
UNITY = "unity.c"  # the other files, included one after the other
LINES_MAX = 450
GLIBC_MAX = (2, 28)

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="the C sources are not here (an installed package)")


def sources() -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(CSRC.iterdir()) if p.suffix in {".c", ".h"}}


def source_names() -> list[str]:
    return sorted(sources()) if CSRC.is_dir() else []


# ---- C as text ---------------------------------------------------------------------------------------------

TOKEN = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)


def blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def split_comments(text: str) -> tuple[list[str], list[str]]:
    """Two lists, line by line: the code without comments and literals, and the comments without code."""
    code, comments, at = [], [], 0
    for token in TOKEN.finditer(text):
        between, found = text[at : token.start()], token.group()
        is_comment = found.startswith("/")
        code += [between, blank(found)]
        comments += [blank(between), found if is_comment else blank(found)]
        at = token.end()
    code.append(text[at:])
    comments.append(blank(text[at:]))
    return "".join(code).splitlines(), "".join(comments).splitlines()


# ---- rules 1 and 2: each atomic call names its edge or its reason, each release has its acquire ------------

ATOMIC = re.compile(r"\bshmt_(load|store|cas|add|sub|or|and|exchange)_(relaxed|acquire|release|acq_rel|seq_cst)\s*\(")
EDGE = re.compile(r"\b[A-Z][0-9]{1,2}\b")
# At the beginning of a line of a comment: the edge that this comment is about. "P2 publish: ...", "C2/C3 seq_cst: ..."
DECLARED = re.compile(r"^[\s/*]*((?:[A-Z][0-9]{1,2})(?:/[A-Z][0-9]{1,2})*)\b", re.MULTILINE)
WORD = re.compile(r"[A-Za-z]{3,}")


@dataclass
class Call:
    file: str
    line: int  # from 1
    op: str
    order: str
    comment: str
    edges: set[str] = field(default_factory=set)
    declared: set[str] = field(default_factory=set)

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}: shmt_{self.op}_{self.order}"

    @property
    def releases(self) -> bool:
        return self.op != "load" and self.order in {"release", "acq_rel", "seq_cst"}

    @property
    def acquires(self) -> bool:
        return self.op != "store" and self.order in {"acquire", "acq_rel", "seq_cst"}


def comment_block_above(line: int, code: list[str], comments: list[str]) -> str:
    """The nearest lines of nothing but comment above `line`: in its paragraph (no empty line in between), in its
    function."""
    at = line - 1
    while at >= 0 and code[at].strip():
        if re.match(r"[A-Za-z}]", code[at]):
            return ""
        at -= 1
    block = []
    while at >= 0 and not code[at].strip() and comments[at].strip():
        block.append(comments[at])
        at -= 1
    return "\n".join(reversed(block))


def statement_lines(line: int, code: list[str]) -> range:
    """The lines of the statement, or of the head of the block, that `line` is part of."""

    def ends(text: str) -> bool:
        return text.rstrip().endswith((";", "{", "}", ":")) or not text.strip() or text.lstrip().startswith("#")

    begin = end = line
    while begin > 0 and not ends(code[begin - 1]):
        begin -= 1
    while end < len(code) - 1 and not ends(code[end]):
        end += 1
    return range(begin, end + 1)


def function_comment(line: int, code: list[str], comments: list[str]) -> str:
    """The comment above the function that `line` is in."""
    at = line
    while at >= 0 and not re.match(r"[A-Za-z]", code[at]):
        at -= 1
    while at > 0 and re.match(r"[A-Za-z]", code[at - 1]):
        at -= 1
    return comment_block_above(at, code, comments) if at >= 0 else ""


def atomic_calls(name: str, text: str) -> list[Call]:
    code, comments = split_comments(text)
    calls = []
    for number, line in enumerate(code):
        for match in ATOMIC.finditer(line):
            lines = statement_lines(number, code)
            beside = comments[number].strip() or "\n".join(comments[i] for i in lines).strip()
            above = comment_block_above(lines[0], code, comments)
            call = Call(name, number + 1, match[1], match[2], beside)
            if call.order == "relaxed":
                whole = function_comment(number, code, comments)
                if not WORD.search(beside):
                    call.comment = above if WORD.search(above) else whole if "relaxed" in whole.lower() else ""
            elif not EDGE.search(beside):
                call.comment = above
            call.edges = set(EDGE.findall(call.comment))
            for group in DECLARED.findall(call.comment):
                call.declared.update(group.split("/"))
            call.declared = call.declared or call.edges
            calls.append(call)
    return calls


def check_comments(calls: Iterable[Call]) -> list[str]:
    """Rule 1."""
    bad = []
    for call in calls:
        if call.order == "relaxed":
            if not WORD.search(call.comment):
                bad.append(f"{call.where}: no comment says why nothing depends on its order")
        elif not call.edges:
            bad.append(f"{call.where}: no comment names its edge (a letter and a number)")
    return bad


def check_pairs(calls: Iterable[Call]) -> list[str]:
    """Rule 2: an edge that a release declares is acquired elsewhere, under its name or that of a partner which the
    comment names; or the comment says that the operation, which does both, pairs with itself."""
    calls = list(calls)
    bad = []
    for call in calls:
        if not call.releases:
            continue
        others = [c for c in calls if c is not call and c.acquires]
        for edge in sorted(call.declared):
            partners = {edge} | (call.edges - call.declared)
            paired = any(partners & (c.declared | {edge} & c.edges) for c in others)
            itself = call.acquires and re.search(r"\b(with itself|only one)\b", call.comment)
            if not paired and not itself:
                bad.append(f"{call.where}: nobody acquires edge {edge}")
    return bad


def calls_of(texts: dict[str, str]) -> list[Call]:
    return [call for name, text in texts.items() if name != "atomic.h" for call in atomic_calls(name, text)]


def test_every_atomic_call_is_explained() -> None:
    calls = calls_of(sources())
    assert len(calls) > 80
    assert check_comments(calls) == []


def test_each_release_has_its_acquire() -> None:
    assert check_pairs(calls_of(sources())) == []


@pytest.mark.parametrize(
    "snippet",
    [
        "void f(void) {\n    shmt_store_release(&a, 1);\n}",
        "void f(void) {\n    shmt_store_release(&a, 1); /* publishes it */\n}",
        "void f(void) {\n    x = shmt_load_relaxed(&a);\n}",
        "void f(void) {\n    x = shmt_load_relaxed(&a); /* M1 */\n}",  # no reason in words
        "void f(void) {\n    /* P1: elsewhere */\n\n    shmt_store_release(&a, 1);\n}",
        "void f(void) {\n    /* P1: of the other branch */\n    if (x) {\n    }\n\n    shmt_load_acquire(&a);\n}",
        'void f(void) {\n    g("/* P1 */", shmt_load_acquire(&a));\n}',
        "/* Figures for people. */\nvoid f(void) {\n    x = 1;\n    shmt_add_relaxed(&a, 1);\n}",
        "void f(void) {\n    if (shmt_cas_seq_cst(&a, &b, c)) { /* now it is ours */\n    }\n}",
        "void f(void) {\n    /* a reason for the relaxed one */\n    shmt_or_seq_cst(&a, 1);\n}",
    ],
)
def test_an_unexplained_call_is_found(snippet: str) -> None:
    calls = atomic_calls("bad.c", snippet)
    assert len(calls) == 1
    assert len(check_comments(calls)) == 1


@pytest.mark.parametrize(
    "snippet",
    [
        "void f(void) {\n    shmt_store_release(&a, 1); /* P1 publish: pairs with A1 */\n}",
        "void f(void) {\n    /* P1 publish:\n     * carries everything */\n    shmt_store_release(&a, 1);\n}",
        "void f(void) {\n    /* P1: both of them */\n    x = 1;\n    shmt_store_release(&a, 1);\n}",
        "void f(void) {\n    return g(shmt_load_acquire(&a),\n             2); /* A1 */\n}",
        "void f(void) {\n    x = shmt_load_relaxed(&a); /* a hint */\n}",
        "/* Relaxed throughout: figures. */\nvoid f(void) {\n    x = 1;\n\n    shmt_add_relaxed(&a, 1);\n}",
        "void f(void) {\n    // shmt_store_release(&a, 1) would be wrong\n    shmt_load_seq_cst(&b); // O1\n}",
    ],
)
def test_an_explained_call_is_not(snippet: str) -> None:
    calls = atomic_calls("good.c", snippet)
    assert len(calls) == 1
    assert check_comments(calls) == []


RELEASE = "void f(void) {\n    shmt_store_release(&a, 1); /* P1 publish: %s */\n}\n"


@pytest.mark.parametrize(
    ("snippet", "complaints"),
    [
        (RELEASE % "carries it all", 1),
        (RELEASE % "pairs with A1" + "\nvoid g(void) {\n    shmt_load_relaxed(&a); /* A1 relaxed, for speed */\n}", 1),
        (RELEASE % "pairs with A1" + "\nvoid g(void) {\n    shmt_load_acquire(&a); /* B7 something else */\n}", 1),
        (RELEASE % "" + RELEASE % "", 2),  # two releases are no pair
        (RELEASE % "pairs with itself", 1),  # a store acquires nothing
        ("void f(void) {\n    shmt_sub_acq_rel(&a, 1); /* H1 carries their last use */\n}", 1),
        (RELEASE % "pairs with A1" + "\nvoid g(void) {\n    shmt_load_acquire(&a); /* A1 acquire */\n}", 0),
        (RELEASE % "" + "\nvoid g(void) {\n    shmt_load_acquire(&a); /* A1 acquires from P1 */\n}", 0),
        (RELEASE % "" + "\nvoid g(void) {\n    shmt_load_seq_cst(&a); /* P1 */\n}", 0),
        ("void f(void) {\n    shmt_sub_acq_rel(&a, 1); /* H1 acq_rel: pairs with itself in other threads */\n}", 0),
    ],
)
def test_a_release_without_its_acquire_is_found(snippet: str, complaints: int) -> None:
    assert len(check_pairs(atomic_calls("bad.c", snippet))) == complaints


# ---- rule 3: what is not used ------------------------------------------------------------------------------

FORBIDDEN = {
    r"#\s*include\s*<stdatomic\.h>": "only atomic.h includes <stdatomic.h>",
    r"\batomic_(?!h\b)\w+\s*\(|\b_Atomic\b|\b__(?:sync|atomic)_\w+": "only atomic.h knows how the atomics are called",
    r"\bvolatile\b": "volatile is no synchronisation",
    r"\b(?:atomic_thread_fence|atomic_signal_fence)\b": "no free-standing fences: ThreadSanitizer cannot follow them",
    r"\b(?:v?f?printf|v?dprintf|puts|fputs|putchar|perror|psignal)\s*\(": "C does not print",
    r"\b(?:abort|exit|_exit|_Exit|quick_exit|assert|raise)\s*\(": "C does not end the process",
    r"\berrno\s*=(?!=)": "errors are returned, errno is not set",
}
ALLOWED_IN_ATOMIC_H = {
    r"#\s*include\s*<stdatomic\.h>",
    r"\batomic_(?!h\b)\w+\s*\(|\b_Atomic\b|\b__(?:sync|atomic)_\w+",
}


def check_forbidden(name: str, text: str) -> list[str]:
    code, _ = split_comments(text)
    return [
        f"{name}:{number}: {why}: {line.strip()}"
        for number, line in enumerate(code, 1)
        for pattern, why in FORBIDDEN.items()
        if re.search(pattern, line) and not (name == "atomic.h" and pattern in ALLOWED_IN_ATOMIC_H)
    ]


@pytest.mark.parametrize("name", source_names())
def test_nothing_forbidden(name: str) -> None:
    assert check_forbidden(name, sources()[name]) == []


@pytest.mark.parametrize(
    "line",
    [
        "#include <stdatomic.h>",
        "#  include <stdatomic.h>",
        "static volatile int stop;",
        "atomic_thread_fence(memory_order_seq_cst);",
        "atomic_store_explicit(&a, 1, memory_order_release);",
        "_Atomic int n;",
        "__atomic_load_n(&a, __ATOMIC_ACQUIRE);",
        '    printf("%d", n);',
        '    fprintf (stderr, "no");',
        "    if (bad) abort();",
        "    exit(1);",
        "    assert(n > 0);",
        "    errno = EINVAL;",
    ],
)
def test_what_is_forbidden_is_found(line: str) -> None:
    assert check_forbidden("bad.c", line)


@pytest.mark.parametrize(
    "line",
    [
        "/* volatile would not help, nor atomic_thread_fence(), nor abort() */",
        'static const char *hint = "exit(1)";',
        "snprintf(path, sizeof path, name);",
        "_Static_assert(sizeof(int) == 4, x);",
        "if (errno == EINTR) {",
        "on_exit_of(thread);",
    ],
)
def test_what_is_allowed_is_not(line: str) -> None:
    assert check_forbidden("good.c", line) == []


def test_only_atomic_h_may_include_stdatomic() -> None:
    assert check_forbidden("atomic.h", "#include <stdatomic.h>") == []
    assert "#include <stdatomic.h>" in sources()["atomic.h"]
    assert check_forbidden("atomic.h", "static volatile int x;")


# ---- rule 4: Cython's declarations are those of the header -------------------------------------------------

PXD_WORDS = {"source": "from", "bint": "bool"}  # `from` is a keyword there, and bint is how it calls C's bool


@dataclass
class Declarations:
    functions: dict[str, str] = field(default_factory=dict)
    structs: dict[str, dict[str, str]] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)


def squeeze(text: str) -> str:
    return re.sub(r"\s*([*(),])\s*", r"\1", " ".join(text.split()))


def declared_fields(lines: Iterable[str]) -> dict[str, str]:
    """Name -> type of each field; `uint64_t a, b` is two."""
    fields = {}
    for line in lines:
        if match := re.match(r"(.*?[\s*])(\w+(?:\s*,\s*\w+)*)$", line.strip()):
            for name in match[2].split(","):
                fields[name.strip()] = squeeze(match[1])
    return fields


def read_header(text: str) -> Declarations:
    code = re.sub(r"^\s*#.*$", "", "\n".join(split_comments(text)[0]), flags=re.MULTILINE)
    found = Declarations()
    found.constants.update(re.findall(r"^[ \t]*#[ \t]*define[ \t]+(SHMT_\w+)[ \t]+\S", text, re.MULTILINE))
    for body in re.findall(r"\benum\s*\{(.*?)\}", code, re.DOTALL):
        found.constants.update(re.findall(r"\b(SHMT_\w+)\b", body))
    for name, opaque in re.findall(r"typedef struct (\w+) (\w+);", code):
        assert name == opaque
        found.structs[name] = {}
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\}\s*(\w+);", code, re.DOTALL):
        found.structs[name] = declared_fields(body.split(";"))
    code = re.sub(r"\benum\s*\{.*?\};|typedef struct \w+ \{.*?\}\s*\w+;|typedef struct \w+ \w+;", "", code, flags=re.S)
    for result, name, arguments in re.findall(r"([\w\s]+?[\s*]+)(shmt_\w+)\s*\(((?:[^()]|\([^()]*\))*)\)\s*;", code):
        found.functions[name] = squeeze(f"{result} {name}({arguments})").replace("(void)", "()", 1)
    return found


def read_pxd(text: str) -> Declarations:
    text = re.sub(r"#.*", "", text)
    text = re.sub(r"\b(" + "|".join(PXD_WORDS) + r")\b", lambda m: PXD_WORDS[m[1]], text)
    text = re.sub(r"\s+(noexcept|nogil)\b", "", text)
    found = Declarations()
    lines = text.splitlines()
    at = 0

    def indent(line: str) -> int:
        return len(line) - len(line.lstrip())

    while at < len(lines):
        line = lines[at]
        at += 1
        body = []
        if re.match(r"\s*(enum\s*:|ctypedef struct \w+:)", line):
            while at < len(lines) and (not lines[at].strip() or indent(lines[at]) > indent(line)):
                body.append(lines[at].strip())
                at += 1
        if re.match(r"\s*enum\s*:", line):
            found.constants.update(word for word in body if word)
        elif match := re.match(r"\s*ctypedef struct (\w+):", line):
            found.structs[match[1]] = declared_fields(word for word in body if word and word != "pass")
        elif "shmt_" in line and "(" in line:
            while line.count("(") > line.count(")"):
                line += " " + lines[at]
                at += 1
            if match := re.match(r"\s*([\w\s]+?[\s*]+)(shmt_\w+)\s*\((.*)\)\s*$", line):
                found.functions[match[2]] = squeeze(f"{match[1]} {match[2]}({match[3]})")
        elif match := re.match(r"\s*\w+ (SHMT_\w+)\s*$", line):
            found.constants.add(match[1])
    return found


def check_declarations(header: Declarations, pxd: Declarations) -> list[str]:
    bad = []
    for what, ours, theirs in (
        ("function", header.functions, pxd.functions),
        ("struct", header.structs, pxd.structs),
        ("constant", dict.fromkeys(header.constants), dict.fromkeys(pxd.constants)),
    ):
        bad += [f"{what} {name} is not in the pxd" for name in ours if name not in theirs]
        bad += [f"{what} {name} is not in shmt.h" for name in theirs if name not in ours]
    for name in header.functions.keys() & pxd.functions.keys():
        if header.functions[name] != pxd.functions[name]:
            bad.append(f"{name}: shmt.h says {header.functions[name]}, the pxd {pxd.functions[name]}")
    for name in header.structs.keys() & pxd.structs.keys():
        if list(header.structs[name].items()) != list(pxd.structs[name].items()):
            bad.append(f"struct {name}: shmt.h says {header.structs[name]}, the pxd {pxd.structs[name]}")
    return sorted(bad)


def test_the_pxd_says_what_the_header_says() -> None:
    assert PXD.exists(), f"{PXD.relative_to(ROOT)} is missing: it mirrors csrc/shmt.h, declarations only"
    header = read_header(sources()["shmt.h"])
    assert len(header.functions) > 40
    assert len(header.structs) > 6
    assert check_declarations(header, read_pxd(PXD.read_text())) == []


GOOD_H = """
#define SHMT_H
#define SHMT_FOREVER INT64_MAX
typedef struct shmt_segment shmt_segment; /* opaque */
enum {
    SHMT_GROW = 1u, /* grows */
    SHMT_DROP = 8u,
};
typedef struct shmt_slot {
    uint8_t *data; /* the payload; always */
    uint64_t free, ready;
    const char *name;
    bool alive;
} shmt_slot;
int shmt_slot_claim(shmt_segment *seg, int64_t deadline_ns,
                    shmt_slot *out);
const shmt_slot *shmt_slot_get(const shmt_segment *seg);
bool shmt_is(void);
int shmt_each(bool dry, void (*seen)(void *arg, const char *name, int stale), void *arg);
void shmt_copy(void *to, const void *from, size_t nbytes);
"""
GOOD_PXD = """
cdef extern from "shmt.h" nogil:
    int64_t SHMT_FOREVER
    ctypedef struct shmt_segment:
        pass
    enum:
        SHMT_GROW
        SHMT_DROP
    ctypedef struct shmt_slot:
        uint8_t *data
        uint64_t free
        uint64_t ready
        const char *name
        bint alive
    int shmt_slot_claim(shmt_segment *seg, int64_t deadline_ns, shmt_slot *out)  # waits
    const shmt_slot *shmt_slot_get(const shmt_segment *seg)
    bint shmt_is()
    int shmt_each(bint dry, void (*seen)(void *arg, const char *name, int stale) noexcept,
                  void *arg)
    void shmt_copy(void *to, const void *source, size_t nbytes)
"""


def test_equal_declarations_are_equal() -> None:
    header, pxd = read_header(GOOD_H), read_pxd(GOOD_PXD)
    assert len(header.functions) == 5
    assert list(header.structs["shmt_slot"]) == ["data", "free", "ready", "name", "alive"]
    assert check_declarations(header, pxd) == []


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("        uint64_t ready\n", ""),
        ("uint64_t ready", "uint32_t ready"),
        ("uint64_t ready", "uint64_t done"),
        ("        uint64_t free\n        uint64_t ready\n", "        uint64_t ready\n        uint64_t free\n"),
        ("        bint alive\n", "        bint alive\n        int more\n"),
        ("        SHMT_DROP\n", ""),
        ("SHMT_DROP", "SHMT_DROPS"),
        ("    int64_t SHMT_FOREVER\n", ""),
        ("    bint shmt_is()\n", ""),
        ("shmt_is()", "shmt_is_it()"),
        ("shmt_is()", "shmt_is(int x)"),
        ("int64_t deadline_ns", "int64_t timeout_ns"),
        ("int64_t deadline_ns", "uint64_t deadline_ns"),
        ("deadline_ns, shmt_slot *out", "deadline_ns"),
        ("const shmt_slot *shmt_slot_get", "shmt_slot *shmt_slot_get"),
        ("const void *source", "void *source"),
        ("    ctypedef struct shmt_segment:\n        pass\n", ""),
    ],
)
def test_a_difference_is_found(was: str, becomes: str) -> None:
    assert was in GOOD_PXD
    assert check_declarations(read_header(GOOD_H), read_pxd(GOOD_PXD.replace(was, becomes, 1)))


# ---- rule 5: files stay small enough to hold in mind -------------------------------------------------------


def check_length(name: str, text: str) -> list[str]:
    lines = text.count("\n")
    return [f"{name} has {lines} lines, more than {LINES_MAX}"] if lines > LINES_MAX else []


@pytest.mark.parametrize("name", source_names())
def test_no_file_is_too_long(name: str) -> None:
    assert check_length(name, sources()[name]) == []


def test_a_file_that_is_too_long_is_found() -> None:
    assert check_length("long.c", "x\n" * LINES_MAX) == []
    assert check_length("long.c", "x\n" * (LINES_MAX + 1))


# ---- rule 6: the glibc that a wheel needs ------------------------------------------------------------------


def check_glibc(symbols: str) -> list[str]:
    """`symbols` is what readelf or objdump prints of the dynamic symbols."""
    bad = []
    for line in symbols.splitlines():
        for version in re.findall(r"\bGLIBC_([0-9.]+)", line):
            if tuple(map(int, version.split(".")))[:2] > GLIBC_MAX:
                bad.append(f"GLIBC_{version} is newer than {GLIBC_MAX}: {line.strip()}")
    return bad


def built_extensions() -> list[Path]:
    return sorted((ROOT / "shmtensor").glob("*.so"))


@pytest.mark.parametrize("path", built_extensions() or [None], ids=lambda p: p.name.split(".")[0] if p else "none")
def test_the_extension_needs_no_newer_glibc(path: Path | None) -> None:
    if path is None:
        pytest.skip("the extension is not built in place")
    if readelf := shutil.which("readelf"):
        command = [readelf, "--dyn-syms", "-W", str(path)]
    elif objdump := shutil.which("objdump"):
        command = [objdump, "-T", str(path)]
    else:
        pytest.skip("neither readelf nor objdump (binutils) is installed")
    symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "__asan_" in symbols or "__tsan_" in symbols:
        pytest.skip("a sanitizer's build, which is for no other machine")
    assert "GLIBC_" in symbols or "musl" in symbols
    assert check_glibc(symbols) == []


@pytest.mark.parametrize(
    "line",
    [
        "    42: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND fstat@GLIBC_2.33 (5)",
        "    42: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND __isoc23_strtoull@GLIBC_2.38 (5)",
        "0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.34) pthread_create",
        "0000000000000000      DF *UND*\t0000000000000000  GLIBC_3.0   memcpy",
    ],
)
def test_a_newer_symbol_is_found(line: str) -> None:
    assert len(check_glibc(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "    42: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND statx@GLIBC_2.28 (5)",
        "    42: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND memcpy@GLIBC_2.14 (5)",
        "0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.2.5) close",
    ],
)
def test_an_old_symbol_is_not(line: str) -> None:
    assert check_glibc(line) == []


# ---- rule 7: a file uses only what comes before it ---------------------------------------------------------

# (where, what): why. Each one is a knot that was tied on purpose: to have a segment is to take part in it.
EXCEPTIONS = {
    ("internal.h", "shmt_member_join"): "shmt_enter(), the first step of every verb, joins a process that has not",
}


def rooms(unity: str) -> list[str]:
    """The order of the rooms: that in which unity.c includes them."""
    return re.findall(r'^#include "(\w+\.c)"', unity, re.MULTILINE)


def definitions(text: str) -> set[str]:
    """The shmt_ functions that a file defines: a name at the beginning of a block, outside of any other."""
    code = "\n".join(split_comments(text)[0])
    return set(re.findall(r"^[a-z](?:[^;{}()\n]*[\s*])(shmt_\w+)\([^;{}]*\)\s*\{", code, re.MULTILINE))


def uses(text: str) -> dict[str, int]:
    """Each shmt_ name that a file mentions after it has included its headers, and where first."""
    found: dict[str, int] = {}
    for number, line in enumerate(split_comments(text)[0], 1):
        for name in re.findall(r"\bshmt_\w+", line):
            found.setdefault(name, number)
    return found


def check_layers(texts: dict[str, str], order: list[str]) -> tuple[list[str], set[tuple[str, str]]]:
    """Complaints, and the exceptions that were needed."""
    owner = {name: file for file in order for name in definitions(texts[file])}
    needed, bad = set(), []
    inline = {"internal.h": texts["internal.h"]} if "internal.h" in texts else {}
    for file in [*inline, *order]:
        if file == "internal.h":
            code = "\n".join(split_comments(texts[file])[0])
            bodies = re.findall(r"static inline [^;{]*\{.*?^\}", code, re.MULTILINE | re.DOTALL)
            mentioned = uses("\n".join(bodies))
        else:
            mentioned = uses(texts[file])
        place = -1 if file == "internal.h" else order.index(file)
        for name, line in mentioned.items():
            if name in owner and order.index(owner[name]) > place:
                needed.add((file, name))
                if (file, name) not in EXCEPTIONS:
                    bad.append(f"{file}:{line}: {name} belongs to {owner[name]}, a later room")
    return bad, needed


def test_the_rooms_are_in_order() -> None:
    texts = sources()
    order = rooms(texts[UNITY])
    assert sorted(order) == sorted(name for name in texts if name.endswith(".c") and name != UNITY)
    sections = re.findall(r"^/\* -+ (\w+\.c)", texts["internal.h"], re.MULTILINE)
    assert len(sections) > 6
    assert [name for name in order if name in sections] == sections


def test_a_file_uses_only_what_comes_before_it() -> None:
    texts = sources()
    bad, needed = check_layers(texts, rooms(texts[UNITY]))
    assert bad == []
    assert set(EXCEPTIONS) - needed == set(), "exceptions that nothing needs any more"


def test_each_name_of_the_headers_has_one_home() -> None:
    """What internal.h announces under a file's heading is defined in that file, or in one that the text names."""
    texts = sources()
    order = rooms(texts[UNITY])
    owners: dict[str, list[str]] = {}
    for file in order:
        for name in definitions(texts[file]):
            owners.setdefault(name, []).append(file)
    assert {name: files for name, files in owners.items() if len(files) > 1} == {}
    header = read_header(texts["shmt.h"])
    assert sorted(name for name in header.functions if name not in owners) == []


FIRST = "int shmt_first(int a) {\n    return a;\n}\n"
SECOND = "int shmt_second(int a,\n                int b) {\n    return shmt_first(a + b);\n}\n"


def test_a_call_upwards_is_found() -> None:
    order = ["first.c", "second.c"]
    assert check_layers({"first.c": FIRST, "second.c": SECOND}, order) == ([], set())
    for bad in ("return shmt_second(a, 1);", "run(shmt_second);"):
        complaints, needed = check_layers({"first.c": FIRST.replace("return a;", bad), "second.c": SECOND}, order)
        assert len(complaints) == 1
        assert needed == {("first.c", "shmt_second")}
    said = FIRST.replace("return a;", "return a; /* and never shmt_second() */")
    assert check_layers({"first.c": said, "second.c": SECOND}, order) == ([], set())
    inline = {"internal.h": "static inline int shmt_quick(void) {\n    return shmt_second(1, 2);\n}\n"}
    assert len(check_layers({**inline, "first.c": FIRST, "second.c": SECOND}, order)[0]) == 1

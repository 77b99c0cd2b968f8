"""The extension modules. Everything else about the package is in pyproject.toml.

SHMTENSOR_SANITIZE=address,undefined (or thread) and SHMTENSOR_COVERAGE=1 build them for a checker. Give such
a build a --build-base of its own, as `make asan` does: a change of flags alone rebuilds nothing.
"""

import os
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

cflags = ["-std=c11", "-O3", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
ldflags = ["-pthread"]
helpers = []
if sanitizers := os.environ.get("SHMTENSOR_SANITIZE"):
    checks = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"]
    cflags += checks
    ldflags += checks
if os.environ.get("SHMTENSOR_COVERAGE") == "1":
    cflags += ["--coverage", "-O0", "-g", "-fprofile-update=atomic"]
    ldflags += ["--coverage"]
    helpers = ["tests/coverage/dump.c"]


def extension(name, csources):
    return Extension(
        f"shmtensor.{name}",
        [f"shmtensor/{name}.pyx", *csources, *helpers],
        # Without the headers here an edit to one rebuilds nothing, and the sdist lacks them.
        depends=["setup.py", *sorted(glob("csrc/*.[ch]") + glob("shmtensor/*.px[di]"))],
        include_dirs=["csrc", numpy.get_include()],
        define_macros=[("_GNU_SOURCE", "1"), ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=cflags,
        extra_link_args=ldflags,
    )


directives = {
    "language_level": 3,
    "binding": False,  # 20 to 40 % off the cost of a small call
    "boundscheck": False,
    "wraparound": False,
    "embedsignature": True,
    "freethreading_compatible": True,
}

setup(
    ext_modules=cythonize(
        [
            extension("_views", ["csrc/copy.c"]),
            extension("_core", ["csrc/unity.c"]),
            extension("_codec", []),
        ],
        build_dir="build/cython",  # the generated C stays out of the source tree
        compiler_directives=directives,
    )
)

"""Sphinx: the pages of this folder, and a reference from the docstrings of the built package. `make docs`."""

import re

import shmtensor

project = "shmtensor"
author = "The shmtensor authors"
release = version = shmtensor.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # links to headings, as GitHub makes them

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the extension's signatures carry none; the docstrings say what is taken
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False

html_theme = "furo"
html_title = f"shmtensor {version}"
html_copy_source = False


def tidy_docstring(app, what, name, obj, options, lines):
    """Our docstrings are written to be read as they are; this is what reStructuredText would make of some of them."""
    for i, line in enumerate(lines):
        line = re.sub(r"(?<=[ (])\*(?=\w)", r"\\*", line)  # (len(batch), *shape) begins no emphasis
        if re.match(r" +[A-Z]\w+(, [A-Z]\w+)+: ", line):  # Raises: several at once
            names, colon, rest = line.partition(": ")
            line = names.replace(", ", " or ") + colon + rest
        lines[i] = line
    if what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(": ", " - ")  # napoleon takes what stands before a colon for a type


def tidy_signature(app, what, name, obj, options, signature, returns):
    """Of the extension's methods: no self, no C types; and nothing that is ours alone."""
    if what == "class" and name in ("shmtensor.TensorBuffer", "shmtensor.SharedTensor"):
        return "", returns  # not called
    if signature:
        signature = re.sub(r"\(self(, )?", "(", signature)
        signature = re.sub(r"\b(int|bool) (?=\w)", "", signature)
        signature = signature.replace(", _seq_first=0", "").replace("x=_NOTHING", "x=...")
    return signature, returns


def setup(app):
    app.connect("autodoc-process-docstring", tidy_docstring, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", tidy_signature)

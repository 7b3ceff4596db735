"""The documentation site: `make docs`.

Sphinx, because it is what readers of scientific Python know, with the largest set of kept extensions: MyST, so that the
pages are Markdown that a code host shows as well; sphinx-gallery, so that tutorials are scripts that run; furo, a theme
that needs no network and fits a telephone. docs/builder holds what they do not bring.
"""

import logging
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["MPLBACKEND"] = "Agg"

logging.getLogger("sgdsde").setLevel(logging.WARNING)  # a tutorial shows what it prints, not its progress

from sgdsde import __version__  # noqa: E402

project = "sgdsde"
author = "sgdsde contributors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_gallery.gen_gallery",
    "docs.builder.site",
    "docs.builder.mathml",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["tutorials", "builder", "Thumbs.db", ".DS_Store"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

sphinx_gallery_conf = {
    "examples_dirs": ["tutorials"],
    "gallery_dirs": ["generated/tutorials"],
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"__init__\.py",
    "within_subsection_order": "docs.builder.order.TutorialOrder",
    "capture_repr": (),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "image_scrapers": ("matplotlib",),
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 1e9,
    "write_computation_times": False,
}

highlight_language = "text"  # of formulas in docstrings; every block of a page says its own

html_theme = "furo"
html_title = f"sgdsde {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False

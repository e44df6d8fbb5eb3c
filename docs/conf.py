"""Sphinx configuration."""

project = "cortex"
author = "the cortex authors"
project_copyright = "the cortex authors, GPL-3.0-or-later"

extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "cortex"

myst_enable_extensions = ["colon_fence", "deflist"]
# Headings of these levels can be linked to, as on the pages of a forge.
myst_heading_anchors = 3

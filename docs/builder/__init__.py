"""What Sphinx does not bring: pages from sources, links from names, docstrings of this project's form, MathML."""

"""Figures draw and never compute: one file per figure, its docstring is the caption (see docs/extend.md)."""

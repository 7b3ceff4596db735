"""Experiments compute and never draw: one file per claim, arrays and a manifest (see docs/extend.md)."""

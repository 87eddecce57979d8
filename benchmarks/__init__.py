"""Measurements behind the tables of the README; `python -m benchmarks` runs them. See README.md beside this file."""

"""Where the demo's page is."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent.with_name("static")
"""The folder of the page, its scripts and its style."""

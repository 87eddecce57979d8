"""Puts the tables where they are read: between markers in a Markdown file."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.record import BenchmarkError


def replace_table(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->``.

    Raises:
        BenchmarkError: The file has no such place.
    """
    content = path.read_text(encoding="utf-8") if path.exists() else ""
    place = re.compile(rf"(<!-- benchmark:{re.escape(name)} -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
    replaced, count = place.subn(lambda found: f"{found[1]}{text}\n{found[2]}", content)
    if not count:
        raise BenchmarkError(
            f"{path} has no place for this table. Write these two lines where it belongs: "
            f"<!-- benchmark:{name} --> and <!-- /benchmark -->"
        )
    if replaced != content:
        path.write_text(replaced, encoding="utf-8")

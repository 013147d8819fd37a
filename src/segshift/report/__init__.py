"""A run folder becomes one HTML file that opens anywhere: `build_report`, and `compare_runs` for several."""

from __future__ import annotations

from segshift.report.comparison import compare_runs
from segshift.report.page import build_report
from segshift.report.selection import build_selection

__all__ = ["build_report", "build_selection", "compare_runs"]

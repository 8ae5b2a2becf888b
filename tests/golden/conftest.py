from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many golden cases were compared: a loader that finds none must not look green."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if "test_golden.py::test_case[" in report.nodeid and report.when == "call"
    ]
    if reports:
        cases = {report.nodeid.rsplit("-", 1)[0] for report in reports}
        good = sum(report.passed for report in reports)
        terminalreporter.write_line(
            f"golden: {len(cases)} cases, {len(reports)} comparisons, {good} agree"
        )

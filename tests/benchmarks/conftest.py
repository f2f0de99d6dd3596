"""After the benchmarks: how many times faster ours is than the best of the others."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    groups: dict[str, dict[str, float]] = {}
    for benchmark in config._benchmarksession.benchmarks:
        groups.setdefault(benchmark.group, {})[benchmark.params["way"]] = benchmark.stats.median
    terminalreporter.write_sep("=", "times faster than the best of the others (medians)")
    for group, medians in groups.items():
        ours = medians.pop("ours")
        if medians:
            rival, best = min(medians.items(), key=lambda item: item[1])
            terminalreporter.write_line(f"{group:50} {best / ours:6.2f} × {rival}")

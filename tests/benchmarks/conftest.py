"""After the benchmarks: how many times faster ours is than the best of the others."""

import pytest
import torch
import torch.nn.functional as F

from nbsupport.classifiers.models import build

IMAGES = 500  # a study's test set


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


@pytest.fixture(scope="module")
def cifar_resnet20():
    """A CIFAR ResNet-20 and images, trained for a moment so that attacks have something to do."""
    torch.manual_seed(0)
    classifier = build("resnet20", 10, 32).train()
    labels = torch.randint(10, (IMAGES,))
    images = (
        torch.rand(10, 3, 32, 32)[labels] * 0.3 + 0.35 + 0.1 * torch.randn(IMAGES, 3, 32, 32)
    ).clamp(0, 1)
    optimiser = torch.optim.Adam(classifier.parameters(), 3e-3)
    for _ in range(15):
        optimiser.zero_grad()
        F.cross_entropy(classifier(images), labels).backward()
        optimiser.step()
    return classifier.eval(), images, labels

"""How OpenMP's threads should wait: PGD's rate alone, and beside a process that keeps one core busy."""

import os
import subprocess
import sys

import pytest

SPINS = ("0", "2000", "10000")  # sleep at once, the package's default, its former one
ROUNDS = 3
RATE = """
import time
import nbsupport, torch
from nbsupport.attacks.pgd import pgd
classifier = nbsupport.load_pretrained("cifar10-classifier")
images, labels = torch.rand(64, 3, 32, 32), torch.zeros(64, dtype=torch.long)
pgd(classifier, images, labels, 0.01, steps=1)
start = time.perf_counter()
pgd(classifier, images, labels, 0.01, steps=40)
print(64 * 40 / (time.perf_counter() - start))
"""


def rate(spins):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["GOMP_SPINCOUNT"] = spins
    command = [sys.executable, "-c", RATE]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def medians():
    # in turns: a machine's speed drifts
    rounds = [[rate(spins) for spins in SPINS] for _ in range(ROUNDS)]
    middle = [sorted(rates)[ROUNDS // 2] for rates in zip(*rounds, strict=True)]
    return dict(zip(SPINS, middle, strict=True))


@pytest.mark.parametrize("way", ["ours"])
def test_waiting_threads(benchmark, way):
    benchmark.group = "waiting threads"
    idle = benchmark.pedantic(medians, rounds=1)
    busy_process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy = medians()
    finally:
        busy_process.kill()
        busy_process.wait()
    print(f"\n{'GOMP_SPINCOUNT':>16} {'idle':>8} {'busy':>8}   image-steps/s, median of {ROUNDS}")
    for spins in SPINS:
        print(f"{spins:>16} {idle[spins]:8.0f} {busy[spins]:8.0f}")

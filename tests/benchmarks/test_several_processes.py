"""How much sooner two processes of one thread each make Tables 1 to 4 than one does, once there is a classifier."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from dataclasses import replace
from time import perf_counter
from nbsupport.experiments.artifacts import Artefacts
from nbsupport.experiments.evaluation import Evaluation
from nbsupport.experiments.cluster import accelerator
from nbsupport.experiments.methods import TABLES
from nbsupport.experiments.store import Store
from nbsupport.study import Study

study = replace(Study.named("digits", "quick"), train_images=256, test_images=256)
evaluation, process = Evaluation(Artefacts(study, Store(sys.argv[1]))), accelerator()
evaluation.artefacts.classifier()
process.wait_for_everyone()
start = perf_counter()
for split in ("train", "test"):
    evaluation.artefacts.attacked(split)
attacks = perf_counter() - start
evaluation.share(tuple(dict.fromkeys(method for number in (1, 2, 3, 4) for method in TABLES[number])))
process.wait_for_everyone()
process.print("seconds", attacks, perf_counter() - start)
process.end_training()
"""


@pytest.mark.parametrize("way", ["ours"])
def test_two_processes_beside_one(benchmark, way, tmp_path):
    (tmp_path / "tables.py").write_text(CODE)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def seconds(*launcher):
        command = [
            sys.executable,
            *launcher,
            str(tmp_path / "tables.py"),
            str(tmp_path / str(len(launcher))),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("seconds"))
        return [float(number) for number in line.split()[1:]]

    one = seconds()
    two = benchmark.pedantic(
        seconds,
        args=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        rounds=1,
    )
    benchmark.group = "two processes beside one"
    for part, single, double in zip(("attacks", "all of Tables 1 to 4"), one, two, strict=True):
        print(
            f"\n{part}: {single:.0f} s with one process, {double:.0f} s with two, {single / double:.2f} times as fast"
        )

"""Two processes (gloo on the CPU) do the work of one: the same attacked images and the same results."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

from nbsupport.processes import balance, mean_gradients

COMPUTE = ["-m", "nbsupport", "compute", "--scale", "smoke", "--tables", "3", "4"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(home, *command):
    environment = os.environ | {"NBSUPPORT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process):
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    home = tmp_path_factory.mktemp("one") / "home"
    return home, finish(start(home, *COMPUTE))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes, killed in the middle of their work, and started again."""
    home = tmp_path_factory.mktemp("two") / "home"
    first = start(home, *TWO, *COMPUTE)
    deadline = time.monotonic() + 300
    while not list(home.glob("denoiser/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert list(home.glob("attacked/*/artefact.json"))
    return home, finish(start(home, *TWO, *COMPUTE))


def specification(record):
    return json.loads(Path(record).read_text())["specification"]


def named(home, kind):
    return {specification(path)["name"]: path.parent for path in home.glob(f"{kind}/*/artefact.json")}


def test_the_attacked_images_are_the_same(one, two):
    single, double = named(one[0], "attacked"), named(two[0], "attacked")
    assert single.keys() == double.keys() == {"pgd4-train", "pgd4-test"}
    for name, folder in single.items():
        arrays = [np.asarray(zarr.open_array(path / "array.zarr", mode="r")) for path in (folder, double[name])]
        assert np.array_equal(*arrays), name


def test_the_denoisers_are_the_same_up_to_rounding(one, two):
    single, double = named(one[0], "denoiser"), named(two[0], "denoiser")
    assert single.keys() == double.keys() >= {"Multi-head-Filt(L_img)", "Y-Net", "PA-Filt(L_img)", "Filt(L_img)"}
    for name, folder in single.items():
        weights = [load_file(path / "tensors.safetensors") for path in (folder, double[name])]
        for key, tensor in weights[0].items():
            assert torch.allclose(tensor, weights[1][key], rtol=1e-2, atol=1e-3), (name, key)


def test_only_the_first_process_talks(two):
    lines = two[1].splitlines()
    assert sum(line.startswith("stored in ") for line in lines) == 1


def test_one_process_has_nothing_to_balance():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    mean_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]
    assert balance(torch.tensor([True, False])) == balance(torch.tensor([False, False])) == 1.0

"""What importing the package and `full_precision` change in the process."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from nbsupport.attacks.pgd import full_precision

UNCHANGED = """
import torch
before = torch.backends.cudnn.allow_tf32, torch.get_num_threads(), torch.ones(1) * 1e-39
import nbsupport, nbsupport.experiments.evaluation
assert before == (torch.backends.cudnn.allow_tf32, torch.get_num_threads(), torch.ones(1) * 1e-39)
assert before[2] > 0
"""


def test_importing_the_package_changes_nothing_in_the_process():
    subprocess.run([sys.executable, "-c", UNCHANGED], check=True)


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000"}),
        ({"GOMP_SPINCOUNT": "7"}, {}),
        ({"OMP_WAIT_POLICY": "active"}, {}),
    ],
    ids=str,
)
def test_importing_sets_one_default_that_a_user_may_override(given, added):
    code = "import json, os, nbsupport; print(json.dumps(dict(os.environ)))"
    waiting = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {k: v for k, v in os.environ.items() if k not in waiting} | given
    run = partial(subprocess.run, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(run([sys.executable, "-c", code]).stdout)
    assert {k: found.get(k) for k in waiting} == dict.fromkeys(waiting) | given | added
    assert {k for k in found if k not in environment} <= {*added, "LC_CTYPE"}


def test_setup_lets_denormal_numbers_count_as_zero():
    code = "import nbsupport, torch; nbsupport.setup(); assert not (torch.ones(1) * 1e-39).any()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_attacks_and_results_do_without_tf32_and_leave_the_setting_alone():
    before = torch.backends.cudnn.allow_tf32
    with full_precision(torch.device("cpu")):
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before

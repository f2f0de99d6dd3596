"""What importing the package and `full_precision` change in the process."""

import subprocess
import sys

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


def test_attacks_and_results_do_without_tf32_and_leave_the_setting_alone():
    before = torch.backends.cudnn.allow_tf32
    with full_precision(torch.device("cpu")):
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before

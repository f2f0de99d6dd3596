"""What importing the package, `nbsupport.setup` and `full_precision` change in the process."""

import platform
import subprocess
import sys

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


def test_attacks_and_results_do_without_tf32_and_leave_the_setting_alone():
    before = torch.backends.cudnn.allow_tf32
    with full_precision(torch.device("cpu")):
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


FAULTS = """
import resource
import nbsupport, torch
nbsupport.setup()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

before = faults()
for _ in range(100):
    torch.ones(2**23)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_the_memory_of_a_large_tensor_is_kept_for_the_next():
    """A tensor of 32 MiB has 8,192 pages; asked of the system anew, each is a fault.

    Small objects take from what is freed, so the first few tensors find none large enough.
    """
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 30 * 8192

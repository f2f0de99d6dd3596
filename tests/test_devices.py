"""Device and precision: bfloat16 only where it is wanted and the hardware has it."""

import platform
import subprocess
import sys

import pytest
import torch

from nbsupport.training import devices


@pytest.mark.parametrize(
    ("wanted", "has", "used"),
    [("float32", True, "float32"), ("bfloat16", True, "bfloat16"), ("bfloat16", False, "float32")],
)
def test_precision_is_what_the_hardware_has(wanted, has, used, monkeypatch):
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: has)
    device = torch.device("cpu")
    assert devices.precision(wanted, device) == used
    with devices.autocast(wanted, device):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert str(product.dtype) == f"torch.{used}"


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({"avx2": True}, False),
    ],
)
def test_a_cpu_has_it_by_its_instructions(capabilities, has, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert devices.has_bfloat16(torch.device("cpu")) is has


def test_attacks_stay_in_float32_within_a_training_in_bfloat16(monkeypatch):
    from nbsupport.attacks.pgd import pgd
    from nbsupport.classifiers.models import build

    monkeypatch.setattr(devices, "has_bfloat16", lambda device: True)
    classifier, images, labels = (
        build("small_resnet", 4, 8).eval(),
        torch.rand(3, 3, 8, 8),
        torch.tensor([0, 1, 2]),
    )
    plain = pgd(classifier, images, labels, 0.1, steps=3)
    with devices.autocast("bfloat16", torch.device("cpu")):
        within = pgd(classifier, images, labels, 0.1, steps=3)
    assert torch.equal(plain, within)
    assert within.dtype == torch.float32


def test_attacks_and_results_do_without_tf32():
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def full(number):
    raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")


def test_what_fits_runs_once_and_empties_no_cache(monkeypatch):
    monkeypatch.setattr(devices, "clear_device_cache", lambda **_: pytest.fail("nothing was short"))
    assert devices.halving(lambda number: number, 7) == 7


def test_images_halve_down_to_one():
    tried = []
    with pytest.raises(RuntimeError, match="out of memory"):
        devices.halving(lambda number: tried.append(number) or full(number), 13)
    assert tried == [13, 6, 3, 1]


def test_other_errors_are_not_tried_again():
    tried = []
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        devices.halving(lambda number: tried.append(number) or torch.zeros(2) @ torch.zeros(3), 8)
    assert tried == [8]


FAULTS = """
import resource
import nbsupport, torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

before = faults()
for _ in range(100):
    torch.ones(2**23)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_the_memory_of_a_large_tensor_is_kept_for_the_next():
    """A tensor of 32 MiB has 8,192 pages; asked of the system anew, each is a fault. Small objects take from what
    is freed, so the first few tensors find none large enough."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 30 * 8192

"""Sharing weights: what is pushed to the Hugging Face Hub comes back from it, with its card."""

import shutil
from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, hub_mixin
from small import disturbed

from nbsupport.denoisers import models


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the place of one repository, behind the functions of the Hub's client."""
    files = tmp_path / "repository"
    created, download = SimpleNamespace(repo_id="someone/filter"), huggingface_hub.snapshot_download
    monkeypatch.setattr(HfApi, "create_repo", lambda *given, **options: created)
    upload = lambda *given, folder_path, **options: shutil.copytree(folder_path, files)  # noqa: E731
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    one = lambda *given, filename, **options: str(files / filename)  # noqa: E731
    monkeypatch.setattr(hub_mixin, "hf_hub_download", one)
    every = create_autospec(download, return_value=str(files))  # refuses other arguments
    monkeypatch.setattr(models, "snapshot_download", every)
    return files


def test_a_denoiser_and_its_card_are_pushed_to_the_hub_and_loaded_from_it(hub):
    mine, images = disturbed(models.Filtering), torch.rand(2, 3, 9, 11)
    row = {"metric": "accuracy", "eps": 0.01, "n": 7}
    rows = [row | {"attack": "pgd", "value": 0.625}, row | {"attack": "adaptive", "value": 0.125}]
    mine.about = {"data": "seven of mine", "evaluation": rows}
    mine.push_to_hub("someone/filter", token="secret")
    theirs = models.Filtering.from_pretrained("someone/filter")
    models.snapshot_download.assert_called_once()
    assert torch.equal(mine(images), theirs(images)) and theirs.about == mine.about
    card = (hub / "README.md").read_text("utf-8")
    assert "seven of mine" in card
    assert [line.split()[1::2] for line in card.splitlines() if line.startswith("|")][2] == [
        "0.01", "0.625", "0.125",
    ]  # fmt: skip

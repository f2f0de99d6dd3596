"""Shapes are checked in every call of the package while its tests run, and nothing leaves the test's folder."""

import jaxtyping
from jaxtyping import install_import_hook

hook = install_import_hook("nbsupport", "numeric_tower.check")
hook.__enter__()

import pytest  # noqa: E402

from nbsupport.experiments.artifacts import Experiment  # noqa: E402
from nbsupport.experiments.store import Store  # noqa: E402
from nbsupport.study import Study  # noqa: E402


@pytest.fixture(autouse=True)
def _isolate(tmp_path, monkeypatch):
    monkeypatch.setenv("NBSUPPORT_HOME", str(tmp_path / "home"))
    for name in ("STUDY", "SCALE", "CLASSIFIER", "ROBUST", "DATA", "IMAGE_SIZE", "FIGURES"):
        monkeypatch.delenv(f"NBSUPPORT_{name}", raising=False)


@pytest.fixture(scope="session")
def experiment(tmp_path_factory):
    """The smallest study, whose artifacts are made once for all tests."""
    return Experiment(Study.named("photographs", "smoke"), Store(tmp_path_factory.mktemp("store")))


@pytest.fixture
def no_shape_checker(monkeypatch):
    """As for a user, whom the package's own messages reach."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

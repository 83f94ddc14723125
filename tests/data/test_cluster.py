"""A store is the same, byte for byte, on threads and on a Dask cluster."""

import os
from unittest import mock

import pytest
from helpers import run_command

from colalib.data import corpora, processes, store
from colalib.errors import UserError


@pytest.mark.slow
def test_the_same_store_on_threads_and_on_a_cluster(folder, mel_store, tmp_path):
    distributed = pytest.importorskip("distributed")
    usual = {p.name: p.read_bytes() for p in mel_store.path.iterdir()}
    local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    # a LocalCluster leaves OMP_NUM_THREADS and its like behind, which later tests would inherit
    with mock.patch.dict(os.environ), distributed.LocalCluster(**local) as cluster:
        for name, scheduler in (("threading", None), ("dask", cluster.scheduler_address)):
            with processes.backend(name, scheduler):
                built = store.build(corpora.load(folder), tmp_path / name, progress=False)
            assert {p.name: p.read_bytes() for p in built.path.iterdir()} == usual
        address = ["--backend", "dask", "--scheduler", cluster.scheduler_address]
        done = run_command("prepare", folder, "--out", tmp_path / "line", *address)
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "line").iterdir()} == usual


@pytest.mark.parametrize(
    ("name", "scheduler", "message"),
    [
        ("dask", None, "needs both"),
        (None, "tcp://127.0.0.1:9", "needs both"),
        ("dask", "nonsense", "no Dask scheduler"),
    ],
)
def test_a_cluster_that_is_not_there(name, scheduler, message):
    with pytest.raises(UserError, match=message), processes.backend(name, scheduler):
        pass

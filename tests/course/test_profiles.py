"""Profiles: how much the notebooks do, and where they keep it."""

import pytest

from colalib import course
from colalib.errors import UserError


def test_a_profile_is_named_by_a_variable(monkeypatch):
    monkeypatch.delenv("COLA_PROFILE", raising=False)
    assert course.profile().name == "quick"
    for name in course.PROFILES:
        monkeypatch.setenv("COLA_PROFILE", name)
        assert course.profile().name == name
    monkeypatch.setenv("COLA_PROFILE", "fast")
    with pytest.raises(UserError, match="COLA_PROFILE is 'fast': use one of test, quick, full"):
        course.profile()


def test_each_encoder_has_its_own_supervised_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("COLA_RUNS", str(tmp_path))
    monkeypatch.setenv("COLA_PROFILE", "quick")
    assert course.supervised_folder(tmp_path / "pretrained") == tmp_path / "supervised"
    assert course.supervised_folder(tmp_path / "mine") == tmp_path / "supervised-mine"
    assert course.supervised().minutes == course.profile().finetune_minutes

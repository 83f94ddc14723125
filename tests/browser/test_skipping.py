"""Where there is no browser, the tests that need one say why they are skipped."""

import runpy
from pathlib import Path

import pytest


def test_skipped_browser_tests_say_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    helper, reason = Path(__file__).with_name("jupyter_page.py"), "no Chromium or Chrome is installed"
    with pytest.warns(UserWarning, match=reason), pytest.raises(pytest.skip.Exception, match=reason):
        runpy.run_path(str(helper))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(RuntimeError, match="CI must not pass without these tests"):
        runpy.run_path(str(helper))

"""Where there is no browser, the tests that need one say why they are skipped."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).with_name("test_widgets_in_lab.py")


def test_skipped_browser_tests_say_why(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {
        "PATH": str(tmp_path)
    }
    command = [sys.executable, "-m", "pytest", "-q", str(TESTS)]
    for told in ({}, {"CI": "true"}):
        done = subprocess.run(command, env=environment | told, capture_output=True, text=True)
        assert "no Chromium or Chrome is installed" in done.stdout
        assert ("error" in done.stdout) == bool(told), "CI does not pass without these tests"

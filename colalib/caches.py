"""Caches of numba and matplotlib: in a temporary folder where they could be written nowhere else.

In a container, the user may have no home, and the packages may be read-only. numba then refuses to
import librosa or UMAP, and matplotlib warns.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path


def writable(path: Path) -> bool:
    """Return whether a folder can be written, or made where it is not there yet."""
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return os.access(path, os.W_OK)


def use_temporary_if_needed() -> None:
    """Set NUMBA_CACHE_DIR and MPLCONFIGDIR, unless they are set, where the usual places cannot be written."""
    home = Path(os.path.expanduser("~"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    needed = set()
    if not (writable(cache / "matplotlib") and writable(config / "matplotlib")):
        needed.add("MPLCONFIGDIR")
    if not writable(cache / "numba"):
        # numba's first choice is beside the code
        librosa = find_spec("librosa")
        if librosa is None or not writable(Path(librosa.origin).parent / "__pycache__"):
            needed.add("NUMBA_CACHE_DIR")
    needed -= os.environ.keys()
    if not needed:
        return
    # A new one each time: what others could have put there would be run. Child processes use it too.
    try:
        folder = tempfile.mkdtemp(prefix="colalib-")
    except OSError:  # nothing can be written at all
        return
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    os.environ |= dict.fromkeys(needed, folder)

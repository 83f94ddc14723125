"""colalib: contrastive learning of general-purpose audio representations (COLA, arXiv 2010.10915), the package behind the
course in `notebooks/`. Data flows corpora → audio → store → segments → models, objectives → training → evaluation."""

import os

# OpenMP threads that wait by spinning gain a tenth on an idle machine and lose most of the speed on a busy one, where the
# thread they wait for has no core. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"

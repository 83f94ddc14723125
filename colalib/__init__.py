"""colalib: contrastive learning of general-purpose audio representations (COLA, arXiv 2010.10915), the package behind the
course in `notebooks/`. Data flows corpora → audio → store → segments → models, objectives → training → evaluation."""

__version__ = "0.1.0"

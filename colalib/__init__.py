"""colalib: contrastive learning of general-purpose audio representations (COLA, arXiv 2010.10915).

The method is in `cola` and `encoder`. Data flows data → encoder, cola → training → evaluation;
`collection` searches and audits; `widgets` and `course` serve the notebooks. `embed` is the short way from
audio to embeddings.
"""

from colalib import caches

__version__ = "0.1.0"

caches.use_temporary_if_needed()  # before numba and matplotlib are imported


def embed(source, encoder="default", **options):
    """Return embeddings of audio: of a file, a list of files, a folder, a store, or `(samples, sample_rate)`.

    The result has `vectors` float32 [n, d], `clips` (their table, a row each) and `left_out` (path
    and reason of each clip that could not be used). `encoder`: "default", which comes with the
    package, or a run folder. Options and errors: see `evaluation.embed`.
    """
    from colalib.evaluation import embed  # takes a second or two to import

    return embed(source, encoder, **options)

"""colalib: contrastive learning of general-purpose audio representations (COLA, arXiv 2010.10915), the package behind the
course in `notebooks/`. Data flows corpora → audio → store → segments → models, objectives → training → evaluation."""

__version__ = "0.1.0"


def embed(source, encoder="default", **options):
    """Embeddings of audio: of a folder, a file or a list of files, by a run folder's encoder or the one that comes with the
    package. Returns `vectors` float32 [n, d], `clips` (their table, a row each), `left_out` (path and reason of what could not
    be used). Options: `accelerator` (auto, cpu, cuda, mps), `jobs` (processes that read files, -1: all cores). Raises
    `UserError` if there is no such folder, encoder, or usable clip. See `evaluation.embed_audio`."""
    from colalib.evaluation import embed_audio

    return embed_audio(source, encoder, **options)

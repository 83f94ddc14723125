"""colalib: contrastive learning of general-purpose audio representations (COLA, arXiv 2010.10915), the package behind the
course in `notebooks/`. Data flows corpora → audio → store → segments → models, objectives → training → evaluation."""

__version__ = "0.1.0"


def embed(source, encoder="default", **options):
    """Embeddings of a folder of audio, a file or a list of files: `evaluation.embed_audio`."""
    from colalib.evaluation import embed_audio

    return embed_audio(source, encoder, **options)

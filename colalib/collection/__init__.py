"""Collection: what a person does with recordings and embeddings: find clips, find faults, label by ear."""

from colalib.collection.audit import audit
from colalib.collection.labelling import compact, cross_validated, propose
from colalib.collection.labels import Labels
from colalib.collection.search import search

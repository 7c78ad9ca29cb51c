"""Claims of the debate as runnable experiments, one file each.

Holds: ``STUDIES``, the name of each and the module whose ``study`` runs it; ``ON_DATA``, those
that run on data of the caller's.
May import: nothing.
"""

STUDIES = {
    "approximation": "secant.studies.approximation",
    "cover": "secant.studies.cover",
    "perceptron": "secant.studies.perceptron",
    "keeps": "secant.studies.keeps",
    "parity": "secant.studies.parity",
    "pieces": "secant.studies.pieces",
    "recall": "secant.studies.recall",
    "rounding": "secant.studies.rounding",
    "wide-nets": "secant.studies.wide_nets",
}
ON_DATA = frozenset({"rounding"})

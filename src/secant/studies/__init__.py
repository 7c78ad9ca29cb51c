"""Claims of the debate as runnable experiments, one file each.

Holds: ``STUDIES``, the name of each and the module whose ``study`` runs it.
May import: nothing.
"""

STUDIES = {"pieces": "secant.studies.pieces", "wide-nets": "secant.studies.wide_nets"}

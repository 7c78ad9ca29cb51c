"""Claims of the debate as runnable experiments, one file each.

Holds: ``STUDIES``, the name of each and the module whose ``study`` runs it.
May import: nothing.
"""

STUDIES = {"cover": "secant.studies.cover", "wide-nets": "secant.studies.wide_nets"}

"""Whether some convex combination of integer vectors is 0, by every support there is.

Holds: ``hulls_meet``.
May import: the standard library.

Carathéodory: if one is 0, so is one whose support is a circuit, a set that is dependent while no
part of it is. Its one dependence, by elimination in fractions, must have one sign.
"""

from fractions import Fraction
from itertools import combinations


def hulls_meet(vectors):
    """Whether 0 lies in the convex hull of the vectors."""
    width = len(vectors[0])
    return any(
        _is_positive_circuit([vectors[place] for place in support])
        for size in range(1, width + 2)
        for support in combinations(range(len(vectors)), size)
    )


def _is_positive_circuit(chosen):
    count = len(chosen)
    table = [[Fraction(vector[row]) for vector in chosen] for row in range(len(chosen[0]))]
    pivots, row = [], 0
    for column in range(count):
        place = next((r for r in range(row, len(table)) if table[r][column]), None)
        if place is None:
            continue
        table[row], table[place] = table[place], table[row]
        table[row] = [one / table[row][column] for one in table[row]]
        for other in range(len(table)):
            if other != row and table[other][column]:
                factor = table[other][column]
                table[other] = [
                    a - factor * b for a, b in zip(table[other], table[row], strict=True)
                ]
        pivots.append(column)
        row += 1
    free = [column for column in range(count) if column not in pivots]
    if len(free) != 1:
        return False
    return all(table[r][free[0]] < 0 for r in range(len(pivots)))

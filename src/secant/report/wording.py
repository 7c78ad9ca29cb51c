"""What each plot says, in plain words: what a high and a low value mean.

Holds: the words under curves, radii and pieces.
May import: nothing.
"""

CURVE_WORDS = {
    "chord": (
        "Walk straight from one input to another. The curve says how far the output strays from "
        "the straight line between its two ends, in units of t(1 − t) times their distance. Near "
        "0 the output walks straight too; at 1, halfway, it is off by a quarter of the way. Low "
        "is what an affine map does; low alone does not prove one."
    ),
    "tangent": (
        "The error of the tangent (first-order expansion) after a step ρ, relative to the whole "
        "change. Near 0 the derivative predicts the change; at 1 it is as wrong as predicting "
        "none. A curve that stays low far to the right is linear over a long way."
    ),
    "sum": (
        "Change the input by a, by b, and by both. The curve says how much the change under both "
        "differs from the two added up. Near 0 changes add; at 1 the interaction is as large as "
        "the two changes together."
    ),
    "homogeneity": (
        "Scale a step and see whether the change scales with it. Near 0 it does; at 1 the "
        "departure is as large as the scaled change."
    ),
}
DIRECTION_WORDS = {
    "data": " Steps go towards other data points, where the model is used.",
    "random": " Steps go in random directions, most of which no data point takes.",
}
BEYOND_CURVE_WORDS = (
    " Beyond the residual: the part of the change that merely passes through is left out of the "
    "denominator, so a residual path cannot make the curve look low."
)
RADIUS_WORDS = (
    "The step at which the error passes the threshold. High means linear over a long way; 1 is the "
    "median distance between two data points. An open arrow upwards: the error never passed it on "
    "the grid, so the radius is longer than drawn; downwards: it had passed at the first step."
)
PIECES_WORDS = (
    "Each tick is a place where the network, walked along a straight line between two inputs, "
    "turns from one affine map to another. No tick means one affine map all the way; many ticks "
    "say that it bends often, not how sharply: the chord says that."
)

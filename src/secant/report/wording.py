"""What each plot says, in plain words: what a high and a low value mean.

Holds: ``PLOT_WORDS``.
May import: nothing.
"""

PLOT_WORDS = {
    "marks": (
        "Lines and marks",
        "Solid is the model itself, with 95 % intervals over whole units (documents, images) as "
        "whiskers or bands. Dashed is the same architecture with fresh weights, dotted with each "
        "tensor's trained entries shuffled: what they share with the model, training did not make. "
        "An arrow at the edge is a value outside the drawn range.",
    ),
    "raw": (
        "Raw R²",
        "Share of a site's output that one affine map of its input explains on held-out data. "
        "Near 1 an affine map does almost all of it; near 0 it does no better than the mean. "
        "Where the residual alone (hollow) is already near 1, a raw R² near 1 says little: "
        "scaling the input would score almost the same.",
    ),
    "beyond": (
        "Beyond the residual",
        "What the affine map adds to merely scaling the input. 1 is exactly affine; 0 means the "
        "best affine map is no better than scaling the input, so the residual alone stands at 0; "
        "below 0 it is worse on held-out data. A residual path cannot flatter this number, so it "
        "is the headline where input and output have one shape.",
    ),
    "context": (
        "With context",
        "The fit also sees neighbours (the sequence mean and the previous row; in images the "
        "pixels that the block can see): what it gains is context, not nonlinearity.",
    ),
    "chord": (
        "Off the chord",
        "Walk straight from one input to another. The curve says how far the output strays from "
        "the straight line between its two ends, in units of t(1 − t) times their distance. Near "
        "0 the output walks straight too; at 1, halfway, it is off by a quarter of the way. Low "
        "is what an affine map does; low alone does not prove one.",
    ),
    "tangent": (
        "Off the tangent",
        "The error of the tangent (first-order expansion) after a step ρ, relative to the whole "
        "change. Near 0 the derivative predicts the change; at 1 it is as wrong as predicting "
        "none. A curve that stays low far to the right is linear over a long way.",
    ),
    "sum": (
        "Changes that do not add",
        "Change the input by a, by b, and by both. The curve says how much the change under both "
        "differs from the two added up. Near 0 changes add; at 1 the interaction is as large as "
        "the two changes together.",
    ),
    "homogeneity": (
        "Changes that do not scale",
        "Scale a step and see whether the change scales with it. Near 0 it does; at 1 the "
        "departure is as large as the scaled change.",
    ),
    "data steps": (
        "Data directions",
        "Steps go towards other data points, where the model is used.",
    ),
    "early and late inputs steps": (
        "Early and late inputs",
        "The first half of a sequence's inputs goes towards another sequence, the second half "
        "towards a third, and the last state is read: whether what happened early and what "
        "happens late add up in it. A linear recurrence reads 0.",
    ),
    "eigenvalues": (
        "Eigenvalues of the linear state",
        "The linear update that best predicts the next state, taken apart. Each dot is one "
        "direction of the state: its distance from the centre is what a step leaves of it, its "
        "angle how far a step turns it. On the circle a state is kept for ever; outside, the "
        "fitted update alone would grow.",
    ),
    "horizon": (
        "Steps ahead",
        "The same update, fitted on other data and rolled out alone from a true state, fed with "
        "the true inputs. Where the curve stays high, the layer could run as a linear recurrence "
        "for that long.",
    ),
    "memory": (
        "Steps ago",
        "How well a linear readout of the state gives back the input of so many steps ago; hollow, "
        "what today's input gives of it, for inputs that resemble their past need no memory.",
    ),
    "random steps": (
        "Random directions",
        "Steps go in random directions, most of which no data point takes.",
    ),
    "beyond curve": (
        "Curves beyond the residual",
        "The part of the change that merely passes through is left out of the denominator, so a "
        "residual path cannot make the curve look low. The curve with it (raw) is folded away.",
    ),
    "curves": (
        "Root scale",
        "The heights of curves are square roots, so that errors of 10 %, the dotted level, can be "
        "seen beside errors of 400 %.",
    ),
    "radius": (
        "Radius",
        "The step at which the error passes 10 %, an open dot on the curve. High means linear over "
        "a long way; 1 is the median distance between two data points. An open arrow upwards: the "
        "error never passed it on the grid, so the radius is longer than drawn; downwards: it had "
        "passed at the first step. A whisker that runs to the edge has no end on the grid. The "
        "interval takes the median distance as given.",
    ),
    "weights steps": (
        "Steps in the weights",
        "Every tensor of weights steps at once, ρ times its own norm, in a random direction: how "
        "far weights may move before the model stops being its first-order expansion.",
    ),
    "kernel": (
        "Kernel and labels",
        "The tangent kernel says which units a small step of the weights moves together. Its "
        "alignment with the classes is 1 where it moves each class as one and 0 where it knows "
        "nothing of them. Above fresh weights: training made features of the classes.",
    ),
    "pieces": (
        "Pieces",
        "Each tick is a place where the network, walked along a straight line between two inputs, "
        "turns from one affine map to another. No tick means one affine map all the way; many "
        "ticks say that it bends often, not how sharply: the chord says that.",
    ),
}
"""The kind of plot or mark, its name on the page, and its words."""

"""The blocks of a fit with context against the matrix that they make."""

import torch

from secant.gauges.design import design_of
from secant.gauges.moments import Moments
from secant.gauges.ridge import residual_sum

WIDTH, OUTPUTS = 4, 3


def test_a_residual_weighed_by_blocks_is_that_of_the_whole_matrix() -> None:
    """Any sums will do: both are one linear function of them."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def square(width: int) -> torch.Tensor:
        rows = draw(20, width)
        return rows.T @ rows

    sums = Moments(
        torch.tensor(20.0, dtype=torch.float64), draw(WIDTH), draw(OUTPUTS),
        square(WIDTH), draw(WIDTH, OUTPUTS), 1e4 * square(OUTPUTS),
    )  # fmt: skip
    states = {
        "previous": draw(WIDTH, WIDTH), "previous_t": draw(WIDTH, OUTPUTS), "mean": square(WIDTH),
        "mean_last": draw(WIDTH, WIDTH), "last": square(WIDTH), "mean_t": draw(WIDTH, OUTPUTS),
        "last_total": draw(WIDTH), "first_total": draw(WIDTH), "first_t": draw(OUTPUTS),
        "mean_total": draw(WIDTH), "sequences": torch.tensor(6.0, dtype=torch.float64),
    }  # fmt: skip
    spread = torch.tensor(0.7, dtype=torch.float64)
    design = design_of(sums, states, draw(WIDTH), spread)
    weight, z_mean, t_mean = draw(3 * WIDTH + 1, OUTPUTS), draw(3 * WIDTH + 1), draw(OUTPUTS)
    found = design.residual(weight, weight @ weight.T, z_mean, t_mean)
    assert found > 0
    torch.testing.assert_close(found, residual_sum(design.moments(), weight, z_mean, t_mean))

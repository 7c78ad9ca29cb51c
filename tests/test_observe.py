"""One pass over a model's sites: what is counted, what is shared, what is left out."""

import pytest
import torch
from torch import Tensor, nn

from secant.errors import InputError
from secant.fit_readings import duplicates_of, fit_readings
from secant.gauges.fit import Fit
from secant.gauges.interval import GROUPS
from secant.gauges.ridge import Eigenbases
from secant.load.data import Units
from secant.load.feed import Feed
from secant.load.models import Loaded
from secant.maps.receptive import patch_rows, receptive_width
from secant.observe import Observer, accumulate
from secant.site_sums import SiteResult, results_of


def images(count: int = 60, size: int = 6) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def observed(
    model: nn.Module, data: Tensor, sites: list[str], size: int = 32
) -> tuple[Observer, dict[str, SiteResult]]:
    loaded = Loaded("test", model.eval(), None, lambda seed: model)
    feed = Feed(loaded, Units("data", tensor=data), groups=GROUPS, batch_size=size, seed=0)
    observer = accumulate(feed, model, sites, lambda done, total: None)
    return observer, results_of(observer.sites)


class Mixer(nn.Module):
    """Every position takes the previous one's features and the mean of all, and adds its own."""

    def forward(self, x: Tensor) -> Tensor:
        previous = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return x + 2 * previous - 3 * x.mean(1, keepdim=True)


class Spoiled(nn.Module):
    """Turns units whose first value is large into nan."""

    def forward(self, x: Tensor) -> Tensor:
        is_large = x.flatten(1)[:, 0] > 1
        spoiled = torch.where(is_large, torch.nan, 1.0)
        return x.square() * spoiled.view(-1, *[1] * (x.ndim - 1))


def test_a_convolution_is_affine_in_its_receptive_field() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    _, results = observed(model, images(), ["0", "1"])
    for site in ("0", "1"):
        result = results[site]
        assert result.fit.scores["raw"].value < 0.6, "one pixel cannot know its neighbours"
        assert result.context is not None
        assert result.context["raw"].value == pytest.approx(1, abs=1e-9)
    assert results["1"].context["beyond"].value == pytest.approx(1, abs=1e-9)  # type: ignore[index]


def test_a_relu_between_convolutions_is_seen_in_the_receptive_field() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    _, results = observed(nn.Sequential(block), images(), ["0"])
    assert results["0"].context is not None
    assert 0.3 < results["0"].context["raw"].value < 0.99


@pytest.mark.parametrize(
    ("module", "width"),
    [
        (nn.Conv2d(1, 1, 3), 3),
        (nn.Conv2d(1, 1, 3, dilation=2), 5),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, (1, 5))), 7),
        (nn.MaxPool2d(2), 2),
        (nn.Linear(3, 3), 1),
    ],
)
def test_receptive_widths(module: nn.Module, width: int) -> None:
    assert receptive_width(module) == width


def test_patches_hold_each_pixel_and_its_neighbours() -> None:
    x = images(2, 5)
    rows = patch_rows(x, 3)
    assert rows.shape == (2 * 25, 27)
    row = rows[25 + 2 * 5 + 3].view(3, 3, 3)
    assert row.equal(x[1, :, 1:4, 2:5])
    assert rows[0].view(3, 3, 3)[:, 0].eq(0).all(), "outside the image are zeros"


def test_positions_that_mix_affinely_read_one_with_context() -> None:
    data = torch.randn(60, 7, 4, generator=torch.Generator().manual_seed(0)) + 1
    _, results = observed(nn.Sequential(Mixer()), data, ["0"])
    result = results["0"]
    assert result.fit.scores["raw"].value < 0.6
    assert result.context is not None
    assert result.context["raw"].value == pytest.approx(1, abs=1e-6)


def test_shared_tensors_give_the_sums_of_sites_watched_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    data = torch.randn(80, 5)
    together, _ = observed(model, data, ["0", "1", "2"])
    for site in ("0", "1", "2"):
        alone, _ = observed(model, data, [site])
        for name, state in alone.sites[site].fit.metric_state.items():  # type: ignore[union-attr]
            assert torch.equal(state, together.sites[site].fit.metric_state[name])  # type: ignore[union-attr]


def test_another_batch_size_changes_no_reading() -> None:
    """DESIGN.md: within 1e-6 for another batch size."""
    data = torch.randn(90, 7, 4, generator=torch.Generator().manual_seed(0)) + 1
    torch.manual_seed(0)
    model = nn.Sequential(Mixer(), nn.Linear(4, 4), nn.Tanh())
    sites = ["0", "1", "2"]
    _, few = observed(model, data, sites, size=3)
    _, many = observed(model, data, sites, size=64)
    for site in sites:
        for name, score in few[site].fit.scores.items():
            assert score.value == pytest.approx(many[site].fit.scores[name].value, abs=1e-6)
            assert score.interval == pytest.approx(many[site].fit.scores[name].interval, abs=1e-6)
        for name, score in few[site].context.items():  # type: ignore[union-attr]
            assert score.value == pytest.approx(many[site].context[name].value, abs=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 3)])
def test_units_that_are_not_finite_are_left_out_and_told(shape: tuple[int, ...]) -> None:
    data = torch.randn(100, *shape, generator=torch.Generator().manual_seed(0))
    bad = int((data.flatten(1)[:, 0] > 1).sum())
    assert bad > 5
    _, results = observed(nn.Sequential(Spoiled()), data, ["0"])
    assert results["0"].left_out == bad
    good = data[data.flatten(1)[:, 0] <= 1]
    _, clean = observed(nn.Sequential(Spoiled()), good, ["0"])
    found, expected = results["0"].fit, clean["0"].fit
    assert found.rows == expected.rows
    assert found.scores["raw"].value == pytest.approx(expected.scores["raw"].value, abs=1e-12)
    (reading,) = [r for r in fit_readings("0", results["0"], 100) if r.variant == "raw"]
    assert f"{bad} units gave values that are not finite" in " ".join(reading.warnings)
    assert reading.samples["units"] == 100 - bad


def test_a_site_without_one_finite_value_is_an_input_error() -> None:
    data = torch.full((40, 3), torch.nan)
    with pytest.raises(InputError, match="NaN or infinity for every one of 40 units"):
        observed(nn.Sequential(nn.Identity()), data, ["0"])


def test_a_model_without_modules_inside_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no site to fit"):
        observed(nn.Linear(3, 3), torch.randn(60, 3), [])


def test_a_container_and_its_only_child_are_told_apart_from_twins() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 4))
    model = nn.Sequential(inner, nn.Linear(4, 4))
    observer, results = observed(model, torch.randn(60, 4), ["0", "0.0", "1"])
    twins = duplicates_of(observer)
    assert twins == {"0": "0.0"} or twins == {"0.0": "0"}
    (later, earlier) = next(iter(twins.items()))
    readings = fit_readings(later, results[later], 60, earlier)
    assert all(f"site '{earlier}'" in " ".join(r.warnings) for r in readings)


def test_a_strided_block_is_refused_with_what_to_do() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1))
    with pytest.raises(InputError, match=r"site '0' turns 252 rows into 63.*another site"):
        observed(model, images(), ["0"])


class Overwriter(nn.Module):
    """Its caller writes over what its parts returned, as `hidden += ...` does."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        kept = self.other(y)
        y.zero_()
        return y + kept


def test_what_is_written_over_after_a_site_does_not_change_its_rows() -> None:
    _, results = observed(Overwriter(), torch.randn(80, 4), ["part", "other"])
    assert results["part"].fit.affine.weight.abs().max() > 0.1
    assert results["other"].fit.rank == 4


def test_a_site_whose_width_follows_the_batch_is_refused() -> None:
    observer = Observer(nn.Sequential(nn.Identity()), ["0"])
    observer.begin(0, None)
    observer.listen("0", torch.randn(3, 5), torch.randn(3, 5))
    with pytest.raises(InputError, match=r"widths \(6, 6\) in this batch, and had \(5, 5\)"):
        observer.listen("0", torch.randn(3, 6), torch.randn(3, 6))


def test_rows_that_wait_are_added_at_the_next_group_and_at_the_end() -> None:
    observer = Observer(nn.Sequential(nn.Identity()), ["0"])
    for group, count in ((0, 3), (0, 4), (1, 5)):
        observer.begin(group, None)
        observer.listen("0", torch.randn(count, 2), torch.randn(count, 2))
    fit = observer.sites["0"].fit
    assert fit is not None
    assert fit.sum_rows.tolist()[:2] == [7, 0]
    observer.settle()
    assert fit.sum_rows.tolist()[:2] == [7, 5]


def test_a_relu_in_place_is_read_as_out_of_place() -> None:
    torch.manual_seed(0)
    data = torch.randn(80, 5)
    linear = nn.Linear(5, 5)
    model = nn.Sequential(linear, nn.ReLU(inplace=True), nn.Linear(5, 5))
    other = nn.Sequential(linear, nn.ReLU(), model[2])
    sites = ["0", "1", "2"]
    (_, found), (_, expected) = observed(model, data, sites), observed(other, data, sites)
    assert model[1].inplace, "the caller's model is as it was"
    assert expected["1"].fit.scores["raw"].value < 0.99
    for site in sites:
        assert found[site].fit.scores["raw"] == expected[site].fit.scores["raw"]


def test_a_site_that_writes_over_its_input_is_refused() -> None:
    class Writer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    with pytest.raises(InputError, match=r"'1' writes over its own input.*out of place"):
        observed(nn.Sequential(nn.Linear(5, 5), Writer()), torch.randn(60, 5), ["0", "1"])


def test_sums_that_would_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.Tanh())
    needed = GROUPS * 8 * 3 * 50 * 50
    monkeypatch.setattr("secant.observe.free_bytes", lambda: 2 * needed)
    observer, _ = observed(model, torch.randn(60, 50), ["0", "1"])
    held = sum(
        state.nbytes
        for site in observer.sites.values()
        for name, state in site.fit.metric_state.items()  # type: ignore[union-attr]
        if state.ndim == 3
    )
    assert held == 2 * needed, "what was promised is what is held"
    monkeypatch.setattr("secant.observe.free_bytes", lambda: 2 * needed - 1)
    with pytest.raises(InputError, match=r"up to '1' need 0\.0 GB.*--site"):
        observed(model, torch.randn(60, 50), ["0", "1"])


def test_fit_states_start_as_one_zero() -> None:
    """Full zeros would be kept twice, as state and as torchmetrics' default."""
    gauge = Fit(torch.zeros(300), torch.zeros(300))
    assert gauge.sum_xx.numel() == 1
    gauge.update(torch.randn(4, 300), torch.randn(4, 300), 3)
    gauge.reset()
    assert gauge.sum_xx.numel() == 1


def test_solving_at_once_changes_no_bit_and_leaves_the_threads() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh())
    observer, results = observed(model, torch.randn(200, 5), ["0", "1", "2", "3"])
    threads, bases = torch.get_num_threads(), Eigenbases()
    for name, site in observer.sites.items():
        assert site.fit is not None
        site.fit._computed = None
        assert site.result(bases).fit.scores == results[name].fit.scores
    told: list[tuple[int, int]] = []
    results_of(observer.sites, lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.get_num_threads() == threads


def test_an_error_in_solving_is_raised() -> None:
    observer, _ = observed(nn.Sequential(nn.Identity()), torch.randn(200, 5), ["0"])
    site = observer.sites["0"]
    assert site.fit is not None
    site.fit.reset()
    with pytest.raises(InputError, match="no rows yet"):
        results_of(observer.sites)

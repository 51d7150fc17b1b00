"""The prune view's arithmetic is that of `glulens prune`."""

from __future__ import annotations

import numpy as np
import polars
import pytest
from browsing import columns_of
from hypothesis import given, settings
from hypothesis import strategies as st

from glulens.errors import UsageError
from glulens.prune.budget import Budget, choose
from glulens.prune.layout import MlpLayout
from glulens.prune.selection import ties_at_the_cut
from glulens.tui import cutting
from glulens.tui.sets import chosen

WIDTHS = {
    "dense": [(0, "dense", None, 33), (1, "dense", None, 48), (2, "dense", None, 7)],
    "mixture": [
        (0, "dense", None, 24),
        *((1, "expert", e, 12) for e in range(4)),
        (1, "shared", None, 20),
        *((2, "expert", e, 12) for e in range(4)),
    ],
}


def table(kind: str) -> polars.DataFrame:
    rng = np.random.default_rng(0)
    rows = [(*mlp[:3], i) for mlp in WIDTHS[kind] for i in range(mlp[3])]
    frame = polars.DataFrame(rows, schema=["layer", "part", "expert", "neuron"], orient="row")
    n = frame.height
    frame = frame.cast({"expert": polars.Int32}).with_columns(
        ppm=polars.Series(np.round(rng.normal(size=n), 1).astype(np.float32)),
        maw=polars.Series(rng.normal(size=n).astype(np.float32)),
        odd=polars.Series(rng.choice([np.inf, -np.inf, 0.0, 1.0, 2.0], n).astype(np.float32)),
        attr_fact=polars.Series(rng.normal(size=n)),
        dz_fact=polars.Series(rng.normal(size=n)),
        dz_style=polars.Series(np.where(np.arange(n) % 2, np.nan, rng.normal(size=n))),
    )
    return frame if kind == "mixture" else frame.drop("part", "expert")


def layouts(kind: str) -> list[MlpLayout]:
    return [
        MlpLayout(
            index=index,
            layer=layer,
            part=part,
            expert=expert,
            width=width,
            stored=width,
            hidden=8,
            slots={},
            width_key="",
            multiple=1,
        )
        for index, (layer, part, expert, width) in enumerate(WIDTHS[kind])
    ]


@pytest.fixture(scope="module", params=list(WIDTHS))
def case(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("cutting") / "run"
    columns = columns_of(path, table(request.param), model={"hidden": 8})
    return columns, layouts(request.param)


@given(
    fraction=st.sampled_from([0.1, 0.29, 1 / 3, 0.5, 0.8]),
    divisor=st.sampled_from([1, 2, 5, 8]),
    scope=st.sampled_from(["layer", "model"]),
    criterion=st.sampled_from(["ppm", "maw", "odd"]),
    protect=st.booleans(),
)
@settings(max_examples=150)
def test_a_cut_is_what_prune_would_cut(case, fraction, divisor, scope, criterion, protect):
    columns, mlps = case
    stay = np.zeros(columns.n, bool)
    stay[[0, 3, columns.n - 1]] = protect
    scores = [columns[criterion][mlp.start : mlp.stop] for mlp in columns.mlps]
    budget = Budget(fraction=fraction, divisor=divisor, pooled=scope == "model")
    queue = cutting.Queue(columns, criterion, scope, stay=stay if protect else None)
    try:
        wanted = choose(mlps, scores, budget, protected=chosen(columns, stay))
    except UsageError as error:
        if "no neuron would go" in str(error):
            assert queue.cut(fraction, divisor).total == 0
            return
        with pytest.raises(UsageError, match="pinned to stay"):
            queue.cut(fraction, divisor)
        return
    cut = queue.cut(fraction, divisor)
    assert cut.neurons(columns) == wanted
    assert cut.counts == wanted.counts
    assert cut.total == len(wanted)


def test_ties_at_the_cut_are_counted(case):
    columns, _ = case
    scores = [columns["odd"][mlp.start : mlp.stop] for mlp in columns.mlps]
    found = [cutting.Queue(columns, "odd").cut(fraction) for fraction in (0.1, 0.4, 0.7)]
    assert sum(cut.ties for cut in found) > 0
    for cut in found:
        assert cut.ties == ties_at_the_cut(scores, cut.neurons(columns))


def test_what_must_go_goes_first_and_what_must_stay_stays(case):
    columns, _ = case
    highest = columns.order("maw", descending=True)[:2]
    lowest = columns.order("maw")[:2]
    go, stay = np.zeros(columns.n, bool), np.zeros(columns.n, bool)
    go[highest], stay[lowest] = True, True
    for scope in ("layer", "model"):
        free = cutting.Queue(columns, "maw", scope).cut(0.5)
        cut = cutting.Queue(columns, "maw", scope, stay=stay, go=go).cut(0.5)
        assert cut.leaving[highest].all()
        assert not cut.leaving[lowest].any()
        assert scope == "model" or cut.counts == free.counts
    with pytest.raises(UsageError, match=r"pinned to go where 0 may; pin fewer or cut more"):
        cutting.Queue(columns, "maw", go=go).cut(0.0)
    with pytest.raises(UsageError, match="1 neurons are pinned to stay and to go"):
        cutting.Queue(columns, "maw", stay=go, go=np.arange(columns.n) == highest[0])


def test_ranges_are_checked(case):
    columns, _ = case
    queue = cutting.Queue(columns, "ppm")
    assert queue.cut(0.0).total == 0
    for fraction in (1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="outside 0 <= fraction < 1"):
            queue.cut(fraction)
    with pytest.raises(UsageError, match="divisor 0"):
        queue.cut(0.1, 0)
    with pytest.raises(UsageError, match="no column 'pmp'"):
        cutting.Queue(columns, "pmp")


@pytest.mark.parametrize("divisor", [1, 3, 8])
def test_each_step_takes_as_many_neurons_more(case, divisor):
    columns, _ = case
    queue = cutting.Queue(columns, "ppm")
    widest = int(np.argmax(columns.widths))
    width = columns.widths[widest]
    fraction, counts = 0.0, []
    for _ in range(width + 2):
        counts.append(round(fraction * width))
        assert cutting.cut_count(width, fraction) == counts[-1]
        fraction = queue.step(fraction, 1, divisor)
    last = (width - 1) // divisor
    assert counts == [divisor * min(step, last) for step in range(width + 2)]
    assert cutting.cut_count(width, queue.step(fraction, -1, divisor)) == divisor * (last - 1)
    assert queue.step(0.0, -1, divisor) == 0


def test_layers_and_parameters_add_up(tmp_path, case):
    columns, _ = case
    cut = cutting.Queue(columns, "ppm").cut(0.5)
    by_layer = list(cut.by_layer(columns))
    assert [layer for layer, _, _ in by_layer] == [0, 1, 2]
    assert sum(gone for _, _, gone in by_layer) == cut.total
    assert sum(width for _, width, _ in by_layer) == columns.n
    assert cut.parameters == cutting.Parameters(24 * cut.total, 24, None, True)
    model = {"hidden": 8, "parameters_per_neuron": 17, "parameters": 9999}
    known = columns_of(tmp_path / "known", table("dense"), model=model)
    cut = cutting.Queue(known, "ppm").cut(0.5)
    assert cut.parameters == cutting.Parameters(17 * cut.total, 17, 9999, False)
    for number, odd in enumerate(({}, {"model": "x"}, {"model": {"hidden": "8"}})):
        unknown = columns_of(tmp_path / f"unknown{number}", table("dense"), **odd)
        assert cutting.Queue(unknown, "ppm").cut(0.5).parameters.assumed is None


def test_the_top_is_taken_in_each_layer_by_attribution_else_by_dz(case):
    columns, _ = case
    fact, style = cutting.tops(columns)
    assert (fact.property, fact.column) == ("fact", "attr_fact")
    assert (style.property, style.column) == ("style", "dz_style")
    for top in (fact, style):
        sizes = np.abs(columns[top.column])
        wanted = [
            rows.start + int(np.nanargmax(sizes[rows]))
            for rows in map(columns.rows_of, columns.layers)
        ]
        assert top.rows.tolist() == wanted


def test_losses_stand_beside_what_a_random_cut_would_take(case):
    columns, _ = case
    some = cutting.tops(columns)
    cut = cutting.Queue(columns, "maw").cut(0.5)
    rng = np.random.default_rng(0)
    for loss, top in zip(cutting.losses(columns, cut, some), some, strict=True):
        assert loss.top == len(top.rows) == 3
        assert loss.lost == cut.leaving[top.rows].sum()
        random = []
        for _ in range(4000):
            leaving = np.zeros(columns.n, bool)
            for mlp, count in zip(columns.mlps, cut.counts, strict=True):
                leaving[mlp.start + rng.permutation(mlp.stop - mlp.start)[:count]] = True
            random.append(leaving[top.rows].sum())
        assert loss.expected == pytest.approx(np.mean(random), abs=0.06)
        assert loss.sd == pytest.approx(np.std(random), abs=0.06)
    nothing = cutting.losses(columns, cutting.Queue(columns, "maw").cut(0.0), some)
    assert [(loss.lost, loss.expected, loss.sd) for loss in nothing] == [(0, 0, 0)] * 2


def test_agreement_is_that_of_the_sets(case):
    columns, _ = case
    one = cutting.Queue(columns, "ppm").cut(0.5)
    other = cutting.Queue(columns, "maw", "model").cut(0.3)
    found = cutting.agreement(one, other, columns.widths)
    wanted = one.neurons(columns).overlap(other.neurons(columns))
    assert found.criterion == "maw"
    assert found.shared == wanted.shared
    assert found.jaccard == wanted.jaccard
    assert found.expected == pytest.approx(wanted.expected)
    none = cutting.Queue(columns, "ppm").cut(0.0)
    assert np.isnan(cutting.agreement(none, none, columns.widths).jaccard)

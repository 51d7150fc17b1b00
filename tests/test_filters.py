"""The filter language: what it means, what it refuses, and that nothing else gets through."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars
import pytest
from browsing import WIDTH, columns_of, dense, mixture
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glulens.errors import UsageError
from glulens.tui.filter_functions import FUNCTIONS
from glulens.tui.filters import DEEPEST, KEYS, LONGEST, grammar, parse


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    return columns_of(tmp_path_factory.mktemp("filters") / "run", dense())


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return columns_of(tmp_path_factory.mktemp("filters") / "run", mixture())


def passing(columns, text, marked=None):
    return parse(text, columns.names).mask(columns, marked)


def test_the_filter_of_the_documentation(columns):
    marked = np.zeros(columns.n, bool)
    marked[::2] = True
    text = "layer in (1, 2) and ppm > pct(ppm, 50) and abs(attr_fact) > 0.5 and not marked"
    ppm, attr = columns["ppm"], columns["attr_fact"]
    wanted = (columns.layer > 0) & (ppm > np.median(ppm)) & (np.abs(attr) > 0.5) & ~marked
    assert wanted.any()
    assert np.array_equal(passing(columns, text, marked), wanted)


def test_nothing_typed_lets_all_pass(columns):
    assert passing(columns, "").all()
    assert passing(columns, "  \n").all()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (
            "layer == 1 or layer == 2 and neuron < 3",
            lambda layer, n: (layer == 1) | ((layer == 2) & (n < 3)),
        ),
        ("not layer == 1 and neuron < 3", lambda layer, n: ~(layer == 1) & (n < 3)),
        ("not (layer == 1 and neuron < 3)", lambda layer, n: ~((layer == 1) & (n < 3))),
        ("1 <= layer < 2", lambda layer, n: (layer >= 1) & (layer < 2)),
        ("neuron - 3 - 2 < 4", lambda layer, n: n - 3 - 2 < 4),
        ("neuron - (3 - 2) < 4", lambda layer, n: n - (3 - 2) < 4),
        ("12 / neuron / 2 * 3 > 1", lambda layer, n: 12 / n / 2 * 3 > 1),
        ("-neuron + 2 * layer > -5", lambda layer, n: -n + 2 * layer > -5),
        ("--neuron == - -neuron", lambda layer, n: n == n),
        ("neuron * 70000 > 140000", lambda layer, n: n * 70000 > 140000),
        ("layer not in (0, 2.5, 2)", lambda layer, n: ~np.isin(layer, [0, 2])),
        ("neuron in (layer, layer + 1)", lambda layer, n: (n == layer) | (n == layer + 1)),
        ("layer < 1e3 and neuron > .5e1", lambda layer, n: n > 5),
        ("layer<1or layer>1", lambda layer, n: layer != 1),
        ("1 < 2", lambda layer, n: n >= 0),
        ("2 < 1", lambda layer, n: n < 0),
        (
            "min(neuron, 5, layer) == max(layer, 1) - 1",
            lambda layer, n: np.minimum(n, layer) == np.maximum(layer, 1) - 1,
        ),
    ],
)
def test_operators_bind_as_in_python(columns, text, same):
    with np.errstate(all="ignore"):
        wanted = same(columns.layer.astype(float), columns.neuron.astype(float))
    assert np.array_equal(passing(columns, text), wanted)


def test_nan_passes_no_comparison(columns):
    missing = np.isnan(columns["attr_fact"])
    assert missing.any()
    for text in (
        "attr_fact < 0", "attr_fact >= 0", "attr_fact == attr_fact", "attr_fact != 3",
        "attr_fact in (1, 2)", "attr_fact not in (1, 2)", "0 * attr_fact < 1",
        "rank(attr_fact) >= 0", "z(attr_fact) < 100", "0 > attr_fact or attr_fact > -1",
    ):  # fmt: skip
        assert not (passing(columns, text) & missing).any(), text
    assert np.array_equal(passing(columns, "isnan(attr_fact)"), missing)
    assert np.array_equal(passing(columns, "not attr_fact == attr_fact"), missing)
    assert not passing(columns, "ppm != sqrt(-1)").any()


def test_infinities_are_numbers(columns):
    odd = columns["odd"]
    assert np.array_equal(passing(columns, "odd > 1e30"), odd == np.inf)
    assert np.array_equal(passing(columns, "log(odd * 0 + 1) == 0"), np.isfinite(odd))


def test_a_float32_column_equals_the_number_it_shows(columns):
    assert passing(columns, "ppm == 0.3").sum() == (columns["ppm"] == np.float32(0.3)).sum() > 0


def test_percentiles_are_of_the_model_or_of_the_layer(columns):
    maw = columns["maw"]
    assert np.array_equal(passing(columns, "maw <= pct(maw, 25)"), maw <= np.quantile(maw, 0.25))
    by_layer = maw.reshape(-1, WIDTH)
    bar = np.quantile(by_layer, 0.9, axis=1, keepdims=True)
    assert np.array_equal(passing(columns, "maw > lpct(maw, 90)"), (by_layer > bar).ravel())
    size = np.abs(columns["dz_fact"])
    found = passing(columns, "abs(dz_fact) >= pct(abs(dz_fact), 99)")
    assert np.array_equal(found, size >= np.quantile(size, 0.99))
    for percent in ("0", "100"):
        assert passing(columns, f"maw == pct(maw, {percent})").sum() == 1
    assert not passing(columns, "maw > pct(maw, 101)").any()
    assert not passing(columns, "maw > pct(maw, -1)").any()
    assert not passing(columns, "maw > pct(sqrt(-1 - maw), 50)").any()


def test_ranks_and_z_are_within_the_layer(columns):
    frame = dense().with_columns(
        rank=(polars.col("ppm").rank().over("layer") - 1) / (WIDTH - 1),
        z=(polars.col("maw") - polars.col("maw").mean().over("layer"))
        / polars.col("maw").std(ddof=0).over("layer"),
    )
    assert np.array_equal(passing(columns, "rank(ppm) <= 0.3"), frame["rank"] <= 0.3)
    assert np.array_equal(passing(columns, "z(maw) > 1"), frame["z"] > 1)
    assert not passing(columns, "z(layer) > -9").any(), "what never varies has no z"


def test_experts_and_parts(experts):
    assert passing(experts, "expert == 1").sum() == 3
    assert passing(experts, "expert < 9").sum() == 9
    assert passing(experts, "isnan(expert)").sum() == 9
    assert passing(experts, "part == 'shared'").sum() == 5
    assert passing(experts, "part in ('dense', \"shared\") and part != 'dense'").sum() == 5
    assert passing(experts, "rank(ppm) == 1").sum() == 2


def test_a_name_that_is_no_plain_word_stands_in_backticks(tmp_path):
    frame = dense().rename({"maw": "mean_a b+c", "ppm": "in"}).with_columns(маx=polars.col("odd"))
    columns = columns_of(tmp_path / "run", frame)
    assert passing(columns, "`mean_a b+c` < 2").all()
    assert passing(columns, "`in` in (0.5)").sum() > 0
    assert passing(columns, "маx == 1.5").sum() > 0


def test_a_column_goes_before_a_key_of_the_same_name(tmp_path):
    columns = columns_of(tmp_path / "run", dense().with_columns(marked=polars.col("maw")))
    assert passing(columns, "marked < 2").all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pmp > 1", "filter, at 1: no column 'pmp' (did you mean 'ppm'?)"),
        ("ppm > pmp", "filter, at 7: no column 'pmp' (did you mean 'ppm'?)"),
        ("sqr(ppm) > 1", "filter, at 1: no function 'sqr' (did you mean 'sqrt'?)"),
        ("ppm > ", "at 7: a name, a number or a condition is missing"),
        ("ppm", "at 1: this is a number, not a condition"),
        ("ppm > 1 and 3", "at 13: this is a number, not a condition"),
        ("marked > 1", "at 1: this is a condition, not a number"),
        ("-(ppm > 1) > 1", "at 3: this is a condition, not a number"),
        ("not ppm", "at 5: this is a number, not a condition"),
        ("ppm > 1 ppm", "at 9: 'ppm' stands after the end"),
        ("ppm = 1", "at 5: '=' is not part of the language; write =="),
        ("ppm > 1 & maw > 1", "at 9: '&' is not part of the language; write and"),
        ("ppm > 1;", "at 8: ';' is not part of the language"),
        ("ppm > 1\x1b", r"at 8: '\\x1b' is not part of the language"),
        ("`ppm > 1", "at 1: ` opens a name or word that does not end"),
        ("(ppm > 1", "at 9: ')' is missing for the parenthesis at 1"),
        ("ppm in 3", "at 8: '(' is missing after 'in'"),
        ("ppm in ()", "at 9: ')' stands where a name or a number is expected"),
        ("ppm not 3", "at 5: 'not' stands after the end"),
        ("ppm < and", "at 7: 'and' stands where a name or a number is expected"),
        ("abs(ppm, 3) > 1", "at 1: write abs(x): 2 arguments"),
        ("abs > 1", "at 1: abs is a function; write abs(x)"),
        ("pct(ppm, maw) > 1", "at 10: pct(x, p): the last argument is one number"),
        ("isnan(ppm, maw)", "at 1: isnan(x) takes one argument"),
        ("isnan(ppm > 1)", "at 7: this is a condition, not a number"),
        ("part == 'dens'", "at 9: no part 'dens'; there are 'dense', 'expert', 'shared'"),
        ("part < 'dense'", "at 6: words are compared by == and !="),
        ("part == 3", "at 9: a word cannot be compared with a number"),
        ("x" * (LONGEST + 1), "at most 10,000 are read"),
        ("(" * (DEEPEST + 1), f"nested more than {DEEPEST} deep"),
        ("not " * (DEEPEST + 1) + "marked", f"nested more than {DEEPEST} deep"),
        ("-" * (DEEPEST + 1) + "1 > 0", f"nested more than {DEEPEST} deep"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(columns, text, said):
    with pytest.raises(UsageError) as caught:
        parse(text, columns.names)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_and_deep_filters_within_the_limits_are_read(columns):
    deep = DEEPEST - 2
    assert passing(columns, "not " * deep + "layer >= 0").all() == (deep % 2 == 0)
    assert passing(columns, "abs(" * deep + "ppm" + ")" * deep + " >= 0").all()
    assert passing(columns, "(" * deep + "ppm" + ")" * deep + " >= 0").all()
    assert passing(columns, "+".join(["neuron"] * 1400) + " >= 0").all()
    assert passing(columns, " or ".join(["layer == 0"] * 700)).sum() == WIDTH
    assert passing(columns, "0 <= " + " <= ".join(["neuron"] * 900)).all()


def test_a_filter_of_another_run_names_the_missing_column(columns, experts):
    found = parse("maw > 0", columns.names)
    with pytest.raises(UsageError, match="no column 'maw'"):
        found.mask(experts)


def test_the_help_knows_every_function_and_key():
    forms = {form for form, _ in grammar()}
    assert {function.signature for function in FUNCTIONS.values()} | set(KEYS) <= forms


# Random expressions, beside the same said in polars.


def _number(value: float) -> tuple[str, polars.Expr]:
    return repr(value), polars.lit(value, polars.Float64)


def _column(name: str) -> tuple[str, polars.Expr]:
    return name, polars.col(name).cast(polars.Float64)


def _one(name: str, apply: Callable) -> Callable:
    return lambda x: (f"{name}({x[0]})", apply(x[1]))


def _binary(sign: str, apply: Callable) -> Callable:
    return lambda pair: (f"({pair[0][0]} {sign} {pair[1][0]})", apply(pair[0][1], pair[1][1]))


def _smaller(pair: tuple) -> tuple[str, polars.Expr]:
    (left, one), (right, other) = pair
    missing = one.is_nan() | other.is_nan()
    least = polars.min_horizontal(one, other)  # passes NaN over
    return f"min({left}, {right})", polars.when(missing).then(float("nan")).otherwise(least)


NUMBERS = st.recursive(
    st.one_of(
        # Sums and products of such halves are exact in any precision: no doubt at a border.
        st.integers(-8, 8).map(lambda k: k / 2).map(_number),
        st.sampled_from(["half", "layer", "neuron"]).map(_column),
    ),
    lambda inner: st.one_of(
        inner.map(lambda x: (f"-{x[0]}", -x[1])),
        inner.map(_one("abs", lambda x: x.abs())),
        inner.map(_one("sqrt", lambda x: x.sqrt())),
        st.tuples(inner, inner).map(_binary("+", lambda x, y: x + y)),
        st.tuples(inner, inner).map(_binary("-", lambda x, y: x - y)),
        st.tuples(inner, inner).map(_binary("*", lambda x, y: x * y)),
        st.tuples(inner, inner).map(_smaller),
    ),
    max_leaves=6,
)
SIGNS = {
    "<": polars.Expr.lt, "<=": polars.Expr.le, ">": polars.Expr.gt, ">=": polars.Expr.ge,
    "==": polars.Expr.eq, "!=": polars.Expr.ne,
}  # fmt: skip


def _comparison(given: tuple) -> tuple[str, polars.Expr]:
    (left, one), sign, (right, other) = given
    there = one.is_not_nan() & other.is_not_nan()  # to polars, NaN is the largest number
    return f"{left} {sign} {right}", SIGNS[sign](one, other) & there


CONDITIONS = st.recursive(
    st.one_of(
        st.tuples(NUMBERS, st.sampled_from(list(SIGNS)), NUMBERS).map(_comparison),
        NUMBERS.map(lambda x: (f"isnan({x[0]})", x[1].is_nan())),
        st.just(("marked", polars.col("marked"))),
    ),
    lambda inner: st.one_of(
        inner.map(lambda x: (f"not ({x[0]})", ~x[1])),
        st.tuples(inner, inner).map(_binary("and", lambda x, y: x & y)),
        st.tuples(inner, inner).map(_binary("or", lambda x, y: x | y)),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    rng = np.random.default_rng(0)
    half = rng.integers(-6, 6, 3 * WIDTH) / 2
    half[rng.random(3 * WIDTH) < 0.1] = np.nan
    frame = dense().with_columns(half=polars.Series(half))
    marked = rng.random(3 * WIDTH) < 0.5
    columns = columns_of(tmp_path_factory.mktemp("filters") / "run", frame)
    return columns, frame.with_columns(marked=polars.Series(marked)), marked


@given(CONDITIONS)
@settings(max_examples=300)
def test_random_filters_mean_what_polars_says(halves, given_condition):
    columns, frame, marked = halves
    text, reference = given_condition
    wanted = frame.select(reference.alias("found"))["found"]
    if len(wanted) == 1:  # of nothing but numbers
        wanted = polars.Series([wanted[0]] * frame.height)
    assert np.array_equal(passing(columns, text, marked), wanted.to_numpy()), text


PIECES = st.sampled_from(
    ["ppm", "layer", "part", "marked", "in", "not", "and", "or", "(", ")", ",", "<", "==", "1", "'",
     "'dense'", "`", "-", "/", "abs(", "pct(", "isnan(", "1e999", "\x00", "\ud800", "É", " ", "\n"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=30).map(" ".join)))
@settings(max_examples=500)
@example("__import__('os')")
@example("1e999 > ppm")
@example("9" * 5000 + " > ppm")
@example("ppm.real > 1")
@example("٣ > ppm")
def test_any_text_is_a_filter_or_one_line(columns, text):
    try:
        found = parse(text, columns.names)
    except UsageError as error:
        said = str(error)
    else:
        said = ""
        mask = found.mask(columns)
        assert mask.dtype == bool
        assert mask.shape == (columns.n,)
    assert said.isprintable()

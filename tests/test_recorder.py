"""What the recorder streams equals what one gets who keeps everything."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from families import EXPERTS, make

from glulens.datasets.probe_sets import load_probe_set
from glulens.errors import DataError, ModelError, ResourceError, RunError, UsageError
from glulens.probes import recorder, trees
from glulens.probes.engine import make_engine
from glulens.probes.hooks import HooksEngine
from glulens.probes.jobs import SELECTIONS, Job, Selection, selected, told_once
from glulens.probes.means import PairStream, paired
from glulens.probes.recorder import record_job
from glulens.probes.tokens import Encoded, Encoder
from glulens.prune.masks import masked
from glulens.prune.mlps import find_mlps, watching
from glulens.prune.scoring import score_mlps
from glulens.prune.selection import lowest
from glulens.prune.surgery import resize


def some_job(encode, limit: int = 6, **options) -> Job:
    """TruthfulQA's questions of the sample with all their answers."""
    found = load_probe_set("truthfulqa", limit=limit, seed=3)
    conditions: dict[str, list[int]] = {}
    for number, text in enumerate(found.texts):
        conditions.setdefault(text.condition, []).append(number)
    return Job(
        tuple(encode(text.text) for text in found.texts),
        {name: tuple(texts) for name, texts in conditions.items()},
        {"misconception": found.pairs},
        **options,
    )


def random_job(seed: int = 0, n: int = 24, **options) -> Job:
    """Made of ids alone, with a primer that is worth remembering, and texts that are the same."""
    rng = np.random.default_rng(seed)
    primer = tuple(int(k) for k in rng.integers(3, 60, 60))
    texts = []
    for _ in range(n):
        question = primer + tuple(int(k) for k in rng.integers(3, 60, rng.integers(1, 9)))
        for _ in range(3):
            answer = tuple(int(k) for k in rng.integers(3, 6, rng.integers(1, 5)))
            texts.append(Encoded(question + answer, len(question)))
    everything = tuple(range(len(texts)))
    conditions = {"even": everything[::2], "odd": everything[1::2], "all": everything}
    pairs = tuple((3 * k, 3 * k + 1) for k in range(n))
    return Job(tuple(texts), conditions, {"pairs": pairs}, **options)


@pytest.fixture
def remembering(monkeypatch):
    """Remember beginnings sooner than is worth while."""
    monkeypatch.setattr(trees, "WORTH_REMEMBERING", 50)
    monkeypatch.setattr(trees, "ROW", 100)
    monkeypatch.setitem(trees.plan.__kwdefaults__, "row", 100)


def everything(model, job: Job) -> list[list[np.ndarray]]:
    """Of each text and MLP the selected activations, float64 [tokens, neurons], text by text."""
    mlps = find_mlps(model)
    found = []
    for text in job.texts:
        first, last = selected(text, job.tokens)
        rows = [np.zeros((0, mlp.width)) for mlp in mlps]

        def see(mlp, a, places, rows=rows, first=first, last=last):
            rows[mlp] = a[(places >= first) & (places < last)].double().numpy()

        with torch.inference_mode(), watching(mlps, see):
            model.base_model(input_ids=torch.tensor([text.ids]), use_cache=False)
        found.append(rows)
    return found


def check(model, job: Job, folder: Path, tolerance: float = 1e-4, **options) -> None:
    """Every statistic against the same computed from all activations at once."""
    kept = everything(model, job)
    found = record_job(HooksEngine(model), job, folder=folder, **options)
    mlps = len(kept[0])
    edges = np.concatenate([[0], np.cumsum(found.widths)])
    for name, texts in job.conditions.items():
        ours = found.conditions[name]
        for mlp in range(mlps):
            part = slice(edges[mlp], edges[mlp + 1])
            rows = np.concatenate([kept[t][mlp] for t in texts])
            assert (ours.count[part] == len(rows)).all()
            if len(rows) < 2:
                continue
            scale = np.sqrt((rows**2).mean(0))
            np.testing.assert_allclose(ours.rms[part], scale, rtol=tolerance)
            deviation = rows.std(0, ddof=1)
            np.testing.assert_allclose(np.sqrt(ours.variance[part]), deviation, rtol=tolerance)
            np.testing.assert_allclose(ours.mean_abs[part], np.abs(rows).mean(0), rtol=tolerance)
            # A mean, an end of the range: relative to the size of what they are of.
            for mine, theirs in (
                (ours.mean, rows.mean(0)),
                (ours.minimum, rows.min(0)),
                (ours.maximum, rows.max(0)),
            ):
                assert (np.abs(mine[part] - theirs) <= tolerance * scale + 1e-7).all()
            # A value within rounding of 0 may fall on either side.
            near = (np.abs(rows) < tolerance * scale).mean(0)
            assert (np.abs(ours.positive[part] - (rows > 0).mean(0)) <= near + 1e-9).all()
            assert (ours.histogram[part].sum(1) == len(rows)).all()
    for name, pairs in job.contrasts.items():
        ours = found.contrasts[name]
        for mlp in range(mlps):
            part = slice(edges[mlp], edges[mlp + 1])
            seen = [p for p in pairs if all(len(kept[t][mlp]) for t in p)]
            if len(seen) < 2:
                assert (ours.n[part] == len(seen)).all()
                continue
            sides = [np.stack([kept[p[s]][mlp].mean(0) for p in seen]) for s in (0, 1)]
            difference = sides[0] - sides[1]
            assert (ours.n[part] == len(difference)).all()
            size = difference.std(0, ddof=1)
            # Members that do the same (one prompt, a mask) differ by rounding or not at all.
            differs = size > 1e-5 * np.abs(sides).mean((0, 1)).max()
            np.testing.assert_allclose(
                ours.deviation[part], size, rtol=10 * tolerance, atol=1e-5 * np.abs(sides).max()
            )
            z = difference.mean(0)[differs] / size[differs]
            # Where pairs differ by little more than the means' own rounding, so does the quotient.
            rounding = 1e-6 * np.abs(sides).max((0, 1))[differs] / size[differs]
            far = np.abs(ours.d_z[part][differs] - z) / (1 + np.abs(z))
            assert (far < 1e-3 + rounding).all()
            np.testing.assert_allclose(ours.t[part], ours.d_z[part] * len(difference) ** 0.5)
            above = (sides[0][:, None] > sides[1][None]).mean((0, 1))
            above = above + (sides[0][:, None] == sides[1][None]).mean((0, 1)) / 2
            # Rounding may turn a few of the comparisons over.
            margin = 8 / len(difference) ** 2 + ours.auroc_margin[part]
            assert (np.abs(ours.auroc[part] - above)[differs] <= margin[differs]).all()


@pytest.mark.parametrize("tokens", SELECTIONS)
@pytest.mark.parametrize("max_tokens", [1, 100, 2000])
def test_streamed_statistics_equal_those_of_everything_kept(stories, tmp_path, tokens, max_tokens):
    job = some_job(Encoder(stories.tokenizer).text, tokens=tokens)
    check(stories.model, job, tmp_path, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def precise(smollm):
    """SmolLM2 in float64. In float32 the model itself differs between layouts of a batch by more
    than what is tested here; see the next test for that."""
    return copy.deepcopy(smollm.model).double()


@pytest.mark.parametrize("tokens", ["answer", "last", "all"])
@pytest.mark.parametrize("kind", ["intact", "masked", "pruned"])
def test_statistics_on_smollm2_intact_masked_and_pruned(smollm, precise, tmp_path, tokens, kind):
    job = some_job(Encoder(smollm.tokenizer).text, limit=2, tokens=tokens)
    cut = lowest(score_mlps(find_mlps(precise), ["ppm"])["ppm"], 0.1)
    if kind == "intact":
        for max_tokens in (1, 64, 1000):
            check(precise, job, tmp_path, max_tokens=max_tokens)
    elif kind == "masked":
        with masked(precise, cut):
            check(precise, job, tmp_path, max_tokens=200)
    else:
        small = copy.deepcopy(precise)
        resize(small, cut)
        check(small, job, tmp_path, max_tokens=200)


@pytest.mark.parametrize("tokens", ["answer", "last", "all"])
def test_statistics_in_float32_equal_those_of_the_same_activations_kept(
    smollm, tmp_path, monkeypatch, tokens
):
    job = some_job(Encoder(smollm.tokenizer).text, limit=4, tokens=tokens)
    kept: dict[tuple[str, int], list[np.ndarray]] = {}
    take = recorder._Recorder._take

    def spy(self, mlp, values, index, feed):
        for name, (places, weights) in feed.conditions.items():
            rows = np.repeat(values[places].astype(np.float64), weights, axis=0)
            kept.setdefault((name, mlp), []).append(rows)
        take(self, mlp, values, index, feed)

    monkeypatch.setattr(recorder._Recorder, "_take", spy)
    found = record_job(make_engine(smollm), job, folder=tmp_path, max_tokens=100)
    edges = np.concatenate([[0], np.cumsum(found.widths)])
    for (name, mlp), parts in kept.items():
        rows, part = np.concatenate(parts), slice(edges[mlp], edges[mlp + 1])
        ours = found.conditions[name]
        assert (ours.count[part] == len(rows)).all()
        for mine, theirs in (
            (ours.mean, rows.mean(0)),
            (ours.variance, rows.var(0, ddof=1)),
            (ours.rms, np.sqrt((rows**2).mean(0))),
            (ours.mean_abs, np.abs(rows).mean(0)),
            (ours.positive, (rows > 0).mean(0)),
            (ours.minimum, rows.min(0)),
            (ours.maximum, rows.max(0)),
        ):
            np.testing.assert_allclose(mine[part], theirs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("tokens", SELECTIONS)
@pytest.mark.parametrize("matrix_bytes", [0, 10**9])
@pytest.mark.usefixtures("remembering")
def test_a_remembered_beginning_counts_for_every_text(tmp_path, tokens, matrix_bytes):
    model = make("llama")
    check(model, random_job(tokens=tokens), tmp_path, max_tokens=64, matrix_bytes=matrix_bytes)
    check(model, random_job(tokens=tokens), tmp_path, share=False, matrix_bytes=matrix_bytes)


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.usefixtures("remembering")
def test_an_expert_is_recorded_on_the_tokens_sent_to_it(family, tmp_path):
    check(make(family), random_job(tokens="all"), tmp_path, max_tokens=64, matrix_bytes=0)
    check(make(family), random_job(tokens="answer"), tmp_path, max_tokens=64)


def test_masks_are_seen_by_an_expert_too(tmp_path):
    model = make("qwen3_moe")
    cut = lowest(score_mlps(find_mlps(model), ["ppm"])["ppm"], 0.3)
    with masked(model, cut):
        check(model, random_job(), tmp_path)


def same(a, b, tolerance: float = 0.0) -> None:
    """All of two results."""
    for name, one in a.conditions.items():
        for part in ("count", "mean", "variance", "rms", "positive", "maximum", "histogram"):
            x, y = getattr(one, part), getattr(b.conditions[name], part)
            if tolerance and part == "histogram":
                continue  # a value on an edge may fall on either side
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)
    for name, one in a.contrasts.items():
        np.testing.assert_allclose(one.mean, b.contrasts[name].mean, atol=tolerance)
        if not tolerance:
            np.testing.assert_array_equal(one.auroc, b.contrasts[name].auroc)
    for side, table in a.examples.items():
        np.testing.assert_allclose(
            table["value"], b.examples[side]["value"], atol=10 * tolerance, rtol=tolerance
        )
        if not tolerance:
            np.testing.assert_array_equal(table, b.examples[side])


def test_batch_sizes_1_and_32_agree(stories, tmp_path):
    engine = make_engine(stories)
    job = some_job(Encoder(stories.tokenizer).text, limit=12)
    one = record_job(engine, job, folder=tmp_path, max_tokens=1)
    many = record_job(engine, job, folder=tmp_path, max_tokens=32 * 40)
    apart = record_job(engine, job, folder=tmp_path, max_tokens=32 * 40, share=False)
    same(one, many, 1e-5)
    same(one, apart, 1e-5)


def test_examples_are_the_strongest_tokens_and_each_is_told_once(stories, tmp_path):
    job = some_job(Encoder(stories.tokenizer).text, limit=12, tokens="all", examples=4)
    kept = everything(stories.model, job)
    found = record_job(make_engine(stories), job, folder=tmp_path)
    values, contexts = [], []
    for text, rows in zip(job.texts, kept, strict=True):
        for place, row in enumerate(np.concatenate(rows, 1)):
            if (context := text.ids[: place + 2]) not in contexts:
                values.append(row)
                contexts.append(context)
    values = np.stack(values)
    for side, order in (("high", np.argsort(-values, 0)), ("low", np.argsort(values, 0))):
        table = found.examples[side]
        expected = np.take_along_axis(values, order[:4], 0).T
        np.testing.assert_allclose(table["value"], expected, atol=1e-5)
        for neuron in range(0, sum(found.widths), 37):
            contexts_of = {job.texts[e["text"]].ids[: e["position"] + 1] for e in table[neuron]}
            assert len(contexts_of) == 4
    spread = found.examples["spread"]
    assert (np.diff(spread["value"], axis=1) <= 0).all()
    assert (spread["value"][:, 0] > np.median(values, 0)).mean() > 0.95
    assert (spread["value"][:, -1] < np.median(values, 0)).mean() > 0.95
    assert (found.samples.shape[1], len(found.samples)) == (sum(found.widths), 256)


def test_where_memory_runs_out_nothing_is_counted_twice(stories, tmp_path, monkeypatch):
    engine = make_engine(stories)
    job = some_job(Encoder(stories.tokenizer).text, limit=12, tokens="all")
    whole = record_job(engine, job, folder=tmp_path)
    forward = engine.forward

    def small(ids, *, visit=None, **options):
        def breaking(mlp, rows, places):
            assert visit is not None
            if len(ids) > 2 and mlp == 3:
                raise MemoryError
            return visit(mlp, rows, places)

        return forward(ids, visit=breaking, **options)

    monkeypatch.setattr(engine, "forward", small)
    found = record_job(engine, job, folder=tmp_path)
    assert any("memory ran out" in note for note in found.notes)
    same(whole, found, 1e-5)

    def never(ids, **options):
        raise MemoryError

    monkeypatch.setattr(engine, "forward", never)
    with pytest.raises(ResourceError, match="single row"):
        record_job(engine, job, folder=tmp_path)


class Killed(BaseException):
    pass


def stop_after(monkeypatch, batches: int, engine, job: Job, **options) -> None:
    """Record, and be killed after some batches."""
    forward, count = type(engine).forward, [0]

    def until(self, ids, **how):
        count[0] += 1
        if count[0] > batches:
            raise Killed
        return forward(self, ids, **how)

    with monkeypatch.context() as patch:
        patch.setattr(type(engine), "forward", until)
        with pytest.raises(Killed):
            record_job(engine, job, **options)


@pytest.mark.parametrize("matrix_bytes", [0, 10**9])
@pytest.mark.parametrize("kind", ["sentences", "primer"])
@pytest.mark.usefixtures("remembering")
def test_a_killed_recording_goes_on_where_it_was(
    stories, tmp_path, monkeypatch, matrix_bytes, kind
):
    job = some_job(Encoder(stories.tokenizer).text, limit=12, tokens="all")
    if kind == "primer":
        job = random_job(tokens="all")
    engine = make_engine(stories)
    options = {"max_tokens": 100, "matrix_bytes": matrix_bytes, "every": 0.0}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = record_job(engine, job, folder=tmp_path / "a", **options)
    stop_after(monkeypatch, 2, engine, job, folder=tmp_path / "b", **options)
    found = record_job(engine, job, folder=tmp_path / "b", resume=True, **options)
    assert any(note.startswith("resumed after") for note in found.notes)
    same(whole, found)


@pytest.mark.parametrize("damage", ["newest", "both", "means", "another job"])
def test_a_damaged_state_is_told_and_its_part_done_again(stories, tmp_path, monkeypatch, damage):
    job = some_job(Encoder(stories.tokenizer).text, limit=12)
    engine = make_engine(stories)
    options = {"max_tokens": 100, "every": 0.0}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = record_job(engine, job, folder=tmp_path / "a", **options)
    stop_after(monkeypatch, 4, engine, job, folder=tmp_path / "b", **options)
    states = sorted((tmp_path / "b").glob("state-?.safetensors"), key=os.path.getmtime)
    assert len(states) == 2
    hurt = {
        "newest": states[1:],
        "both": states,
        "means": [tmp_path / "b" / "means.f32"],
        "another job": [],
    }[damage]
    for path in hurt:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    if damage == "another job":
        with pytest.raises(RunError, match="begun with other options, another model"):
            record_job(engine, job, folder=tmp_path / "b", resume=True, about="x", **options)
        return
    found = record_job(engine, job, folder=tmp_path / "b", resume=True, **options)
    told = "; ".join(found.notes)
    assert {
        "newest": "was damaged" in told and "resumed after" in told,
        "both": told.count("was damaged") == 2 and "begun anew" in told,
        "means": "means of texts were damaged" in told,
    }[damage], told
    same(whole, found)


def test_a_truncated_state_is_told_too(stories, tmp_path, monkeypatch):
    job = some_job(Encoder(stories.tokenizer).text, limit=6)
    engine = make_engine(stories)
    stop_after(monkeypatch, 3, engine, job, folder=tmp_path, max_tokens=100, every=0.0)
    for path in tmp_path.glob("state-?.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    found = record_job(engine, job, folder=tmp_path, max_tokens=100, resume=True)
    assert "; ".join(found.notes).count("was damaged") == 2


def test_what_cannot_be_recorded_is_refused(stories, tmp_path):
    engine = make_engine(stories)
    text = Encoded((1, 5, 6), 1)
    with pytest.raises(UsageError, match="allowed are answer, last, all, prompt"):
        Job((text,), {"a": (0,)}, tokens="first")  # pyright: ignore
    with pytest.raises(DataError, match="without texts"):
        Job((text,), {"a": ()})
    with pytest.raises(UsageError, match="at least 1"):
        Job((text,), {"a": (0,)}, examples=0)
    with pytest.raises(DataError, match="no token is selected by 'prompt'"):
        record_job(engine, Job((text,), {"a": (0,)}, tokens="prompt"), folder=tmp_path)


def test_activations_that_are_not_finite_are_an_error(tmp_path):
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 0] = float("nan")
    with pytest.raises(ModelError, match="activations of MLP 1 are not finite"):
        record_job(HooksEngine(model), random_job(n=3), folder=tmp_path)


def test_a_token_that_only_one_of_two_texts_selects_is_told():
    """The first text, in alphabetical order, has it in its prompt."""
    a, b = Encoded((1, 5, 6), 2), Encoded((1, 5, 7), 1)
    cases: list[tuple[Selection, int]] = [("answer", 3), ("all", 3), ("prompt", 1)]
    for tokens, expected in cases:
        spans = [selected(text, tokens) for text in (a, b)]
        assert sum(map(len, told_once([a, b], spans))) == expected


def test_the_largest_activation_of_all_is_an_example(stories, tmp_path):
    texts = [Encoded((1, *ids), start) for ids, start in (
        ((5, 6), 2), ((5, 7), 1), ((5, 7, 9), 3), ((5, 7, 9, 11), 2), ((5, 7), 1))]  # fmt: skip
    job = Job(tuple(texts), {"a": tuple(range(5))}, examples=2, samples=5)
    found = record_job(make_engine(stories), job, folder=tmp_path)
    high = found.examples["high"]["value"][:, 0]
    np.testing.assert_allclose(high, found.conditions["a"].maximum, atol=1e-6)


def test_memory_that_runs_out_while_counting_counts_nothing_twice(stories, tmp_path, monkeypatch):
    job = some_job(Encoder(stories.tokenizer).text, limit=4)
    whole = record_job(make_engine(stories), job, folder=tmp_path)
    real, calls = recorder.text_sums, [0]

    def once(*args, **options):
        calls[0] += 1
        if calls[0] == 5:
            raise MemoryError
        return real(*args, **options)

    monkeypatch.setattr(recorder, "text_sums", once)
    found = record_job(make_engine(stories), job, folder=tmp_path)
    assert any("memory ran out" in note for note in found.notes)
    same(whole, found, 1e-5)


def test_a_state_of_another_layout_is_not_gone_on_from(stories, tmp_path, monkeypatch):
    job = some_job(Encoder(stories.tokenizer).text, limit=12)
    engine = make_engine(stories)
    stop_after(monkeypatch, 3, engine, job, folder=tmp_path, max_tokens=100, every=0.0)
    monkeypatch.setattr(trees, "BREADTH", 1.0)
    with pytest.raises(RunError, match="begun with other options"):
        record_job(engine, job, folder=tmp_path, max_tokens=100, resume=True)


def test_beginning_anew_forgets_what_was_done(stories, tmp_path, monkeypatch):
    job = some_job(Encoder(stories.tokenizer).text, limit=12)
    engine = make_engine(stories)
    options = {"folder": tmp_path, "max_tokens": 100, "every": 0.0}
    stop_after(monkeypatch, 4, engine, job, **options)
    stop_after(monkeypatch, 1, engine, job, **options)
    found = record_job(engine, job, resume=True, **options)
    assert any(note.startswith("resumed after 1 of") for note in found.notes), found.notes


def test_the_note_about_memory_survives_a_kill(stories, tmp_path, monkeypatch):
    job = some_job(Encoder(stories.tokenizer).text, limit=12)
    engine = make_engine(stories)
    forward, failed = type(engine).forward, []

    def small(self, ids, **options):
        if not failed:
            failed.append(True)
            raise MemoryError
        return forward(self, ids, **options)

    monkeypatch.setattr(type(engine), "forward", small)
    options = {"folder": tmp_path, "max_tokens": 500, "every": 0.0}
    stop_after(monkeypatch, 4, engine, job, **options)
    found = record_job(engine, job, resume=True, **options)
    assert any("memory ran out" in note for note in found.notes)


def test_a_full_disk_is_told_by_name(stories, tmp_path, monkeypatch):
    import errno

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    job = some_job(Encoder(stories.tokenizer).text, limit=2)
    with pytest.raises(ResourceError, match="disk filled up while means of texts were kept"):
        record_job(make_engine(stories), job, folder=tmp_path)


@pytest.mark.usefixtures("remembering")
def test_a_beginning_too_large_for_memory_is_told_by_name(stories, tmp_path, monkeypatch):
    engine = make_engine(stories)

    def full(*args):
        raise MemoryError

    monkeypatch.setattr(type(engine), "remember", full)
    with pytest.raises(ResourceError, match="out of memory on a beginning of 60 tokens"):
        record_job(engine, random_job(), folder=tmp_path)


def test_pairs_of_which_an_expert_saw_nothing_have_no_statistics():
    stream = PairStream((3,), [(0, 1)])
    assert np.isnan(stream.result().d_z).all()
    assert not stream.result().n.any()
    one = np.ones((2, 3), np.float32)
    assert np.isnan(paired(one, one).d_z).all()


def test_copies_of_a_text_do_not_all_stand_in_one_row():
    texts = [Encoded((1, 2, 3), 1)] * 1000
    made = trees.plan(texts, 64, row=100)
    assert max(len(step.texts) for step in made.passes) <= 64 // 3 * 100
    assert sorted(t for step in made.passes for t in step.texts) == list(range(1000))


def test_auroc_counts_ties_as_halves_and_leaves_missing_pairs_out():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 5, (30, 4)).astype(np.float32)
    b = rng.integers(0, 5, (30, 4)).astype(np.float32)
    a[3, 1] = b[7, 1] = np.nan
    found = paired(a, b)
    for neuron in range(4):
        keep = np.isfinite(a[:, neuron]) & np.isfinite(b[:, neuron])
        x, y = a[keep, neuron, None], b[None, keep, neuron]
        expected = (x > y).mean() + (x == y).mean() / 2
        assert found.auroc[neuron] == pytest.approx(expected)
        assert found.n[neuron] == keep.sum()

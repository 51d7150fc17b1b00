"""Scores of answerers that know nothing, and neurons with other jobs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from glulens.datasets.multiple_choice import Question, load_truthfulqa
from glulens.interp.floors import Choices, answer, answerers
from glulens.interp.rivals import find_rivals, overlaps
from glulens.probes.choices import mc2
from glulens.probes.hooks import HooksEngine
from glulens.probes.tokens import Encoded, Encoder
from glulens.prune.mlps import find_mlps
from glulens.prune.selection import NeuronSet


@pytest.fixture(scope="module")
def official_choices(official):
    return Choices(
        load_truthfulqa(official, "mc1").records, load_truthfulqa(official, "mc2").records
    )


def test_chance_on_version_1_is_that_of_the_design(official_choices, smollm):
    flat = tuple(
        [np.zeros(len(q.choices)) for q in part]
        for part in (official_choices.mc1, official_choices.mc2)
    )
    rows = answerers(Encoder(smollm.tokenizer), official_choices, flat)  # pyright: ignore
    by_name = {row.name: row for row in rows}
    assert by_name["chance"].n == 817
    assert by_name["chance"].mc1 == pytest.approx(0.2225, abs=5e-5)
    assert by_name["chance"].mc2 == pytest.approx(0.4641, abs=5e-5)
    # A model that gives all choices the same is at the floor of MC2, whatever its temperature.
    assert by_name["model"].mc2 == pytest.approx(by_name["chance"].mc2)
    assert by_name["model at T = infinity"].mc1 == by_name["chance"].mc1
    assert by_name["model"].entropy == pytest.approx(1)


def test_mc1_and_mc2_are_the_harness_own(official_choices, smollm):
    instance = pytest.importorskip("lm_eval.api.instance", exc_type=ImportError).Instance
    hflm = pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError).HFLM
    some = official_choices.some([3, 400])
    ours = some.score(HooksEngine(smollm.model), Encoder(smollm.tokenizer))
    harness = hflm(pretrained=smollm.model, tokenizer=smollm.tokenizer, batch_size=8)
    found = answer("model", some, ours)
    scores = []
    for questions in (some.mc1, some.mc2):
        pairs = [(q.context, choice) for q in questions for choice in q.choices]
        requests = [instance("loglikelihood", {}, pair, k) for k, pair in enumerate(pairs)]
        heard = np.array([v for v, _ in harness.loglikelihood(requests, disable_tqdm=True)])
        scores.append(np.split(heard, np.cumsum([len(q.choices) for q in questions])[:-1]))
    theirs = answer("harness", some, (scores[0], scores[1]))
    assert found.mc1 == theirs.mc1
    assert found.mc2 == pytest.approx(theirs.mc2, abs=1e-3)
    assert found.entropy == pytest.approx(theirs.entropy, abs=1e-3)


def questions(rng, n=40):
    made = []
    for k in range(n):
        labels = (1, 1, 0, 0, 0)
        words = tuple(" " + " ".join(["word"] * int(rng.integers(1, 9))) for _ in labels)
        made.append(Question(f"q{k}", f"Q: {k}\nA:", words, labels, "made"))
    return tuple(made)


def test_a_tempered_model_ends_at_the_floor_and_grows_undecided(smollm):
    rng = np.random.default_rng(0)
    made = questions(rng)
    choices = Choices(made, made)
    scores = [rng.normal(0, 8, 5) for _ in made]
    rows = answerers(Encoder(smollm.tokenizer), choices, (scores, scores))
    tempered = [row for row in rows if not np.isnan(row.temperature)]
    entropies = [row.entropy for row in sorted(tempered, key=lambda row: row.temperature)]
    assert entropies == sorted(entropies)
    assert tempered[-1].mc2 == pytest.approx(0.4)
    assert abs(tempered[-2].mc2 - 0.4) < abs(tempered[0].mc2 - 0.4) + 0.02
    assert len({row.mc1 for row in tempered[:-1]}) == 1, "temperature does not change the order"
    first = tempered[0]
    assert first.mc2 == pytest.approx(mc2(scores, made).mean())
    assert first.mc2_low < first.mc2 < first.mc2_high


def test_the_length_answerer_sees_lengths_alone(smollm):
    rng = np.random.default_rng(1)
    made = questions(rng)
    encoder = Encoder(smollm.tokenizer)
    choices = Choices(made, made)
    counts = [np.array([len(c.split()) for c in q.choices], float) for q in made]
    scores = [-2.5 * count for count in counts]  # a model that is nothing else itself
    rows = answerers(encoder, choices, (scores, scores))
    length = next(row for row in rows if row.name.startswith("length only"))
    model = next(row for row in rows if row.name == "model")
    assert "(2.50 nats a token)" in length.name
    assert (length.mc1, length.mc2) == (model.mc1, pytest.approx(model.mc2))


@pytest.fixture
def model(tiny):
    made = tiny(0, tie_word_embeddings=False, vocab_size=200)
    with torch.no_grad():
        # An unembedding that hardly reads its last two directions.
        head = made.get_output_embeddings().weight
        u, s, v = torch.linalg.svd(head, full_matrices=False)
        s[-1:] *= 1e-3
        head.copy_(u @ torch.diag(s) @ v)
    return made


def texts(rng):
    ids = np.minimum(rng.geometric(0.05, 4000), 199)
    return [Encoded(tuple(int(i) for i in part), 1) for part in np.split(ids, 100)]


def test_neurons_with_other_jobs_are_found_where_they_were_put(model):
    rng = np.random.default_rng(0)
    data = texts(rng)
    mlps = find_mlps(model)
    read = model.get_output_embeddings().weight.double()
    _, _, v = torch.linalg.svd(read - read.mean(0), full_matrices=False)
    counts = np.bincount(np.concatenate([t.ids for t in data]), minlength=200)
    seen = counts > 0
    log = np.log(counts[seen])
    toward = torch.linalg.lstsq(
        read[torch.from_numpy(seen)] - read[torch.from_numpy(seen)].mean(0),
        torch.from_numpy(log - log.mean())[:, None],
    ).solution[:, 0]
    with torch.no_grad():
        down = mlps[2].weights[2]
        down[:, 7] = v[-1].float()
        down[:, 9] = (toward / toward.norm()).float()
        mlps[1].weights[2][:, 3] *= 1e4
    entropy, frequency, carriers = find_rivals(model, HooksEngine(model), data)
    assert 7 in entropy.neurons.indices[2]
    assert entropy.scores[2][7] == pytest.approx(1, abs=1e-6)
    assert len(entropy.neurons) <= 3
    assert 9 in frequency.neurons.indices[2]
    assert abs(frequency.scores[2][9]) == max(abs(s).max() for s in frequency.scores)
    assert carriers.neurons.indices[1].tolist() == [3]
    assert len(carriers.neurons) == 1


def test_a_model_of_random_weights_has_hardly_any(tiny):
    found = find_rivals(
        model := tiny(3, vocab_size=200), HooksEngine(model), texts(np.random.default_rng(0))
    )
    assert [len(rival.neurons) <= 1 for rival in found] == [True] * 3


def test_overlap_is_hypergeometric_within_layers_and_summed():
    from glulens.interp.rivals import Rival

    widths = (50, 40)
    cut = NeuronSet(widths, (np.arange(5), np.arange(4)))
    class_ = NeuronSet(widths, (np.array([1, 2, 30]), np.array([39])))
    (row,) = overlaps({"lowest": cut}, [Rival("made", class_, (), 0.0)])
    assert (row.members, row.found) == (4, 2)
    assert row.expected == pytest.approx(3 * 0.1 + 0.1)
    spread = np.convolve(
        stats.hypergeom.pmf(range(4), 50, 5, 3), stats.hypergeom.pmf(range(2), 40, 4, 1)
    )
    assert row.more_p == pytest.approx(spread[2:].sum())
    assert row.fewer_p == pytest.approx(spread[:3].sum())

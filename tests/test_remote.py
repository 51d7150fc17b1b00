"""The nnsight engine sees the numbers that the hooks see, here and where it is sent."""

from __future__ import annotations

import copy
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import ALL, EXPERTS, make
from test_trees import some_texts

from glulens.datasets.pairs import load_material
from glulens.errors import ModelError, UsageError
from glulens.probes.contrasts import record_contrasts
from glulens.probes.engine import make_engine, silencer
from glulens.probes.hooks import HooksEngine
from glulens.probes.likelihood import loglikelihoods
from glulens.probes.tokens import Encoder
from glulens.prune.masks import masked
from glulens.prune.models import ModelSource, OpenedModel
from glulens.prune.selection import NeuronSet
from glulens.prune.surgery import resize

pytest.importorskip("nnsight")

from glulens.probes.remote import NnsightEngine

IDS = torch.tensor([[5, 17, 80, 3, 42, 9, 11], [7, 7, 1, 0, 99, 23, 2]])
KEEP = torch.tensor([2, 5, 9, 12])


def opened(model: Any, name: str = "a folder", kind: Any = "folder") -> OpenedModel:
    """A model without a tokenizer: ids come ready made."""
    tokenizer: Any = None
    return OpenedModel(model, tokenizer, ModelSource(name, kind, Path(name)))


def record(engine, ids=IDS, keep: torch.Tensor | None = KEEP):
    """Activations by MLP, the places told, and logits."""
    seen = []
    with torch.inference_mode():
        logits = engine.forward(
            ids, keep=keep, visit=lambda mlp, rows, places: seen.append((mlp, rows, places))
        )
    assert [mlp for mlp, _, _ in seen] == list(range(len(engine.widths)))
    assert all(torch.equal(places, torch.arange(ids.numel())) for _, _, places in seen)
    return [rows for _, rows, _ in seen], logits


def assert_same(ours, theirs, atol=1e-4):
    torch.testing.assert_close(ours[0], theirs[0], atol=atol, rtol=0)
    torch.testing.assert_close(ours[1], theirs[1], atol=atol, rtol=0)


def own(shared: OpenedModel) -> OpenedModel:
    """Wrapping changes no weight, but it stays."""
    return replace(shared, model=copy.deepcopy(shared.model))


@pytest.fixture
def sent(stories) -> NnsightEngine:
    return NnsightEngine(own(stories), remote="local")


def test_three_engines_agree_on_a_random_model(tiny):
    pytest.importorskip("transformer_lens")
    from glulens.probes.lens import LensEngine

    model = tiny()
    lens = LensEngine(copy.deepcopy(model))
    hooks = record(HooksEngine(model))
    assert_same(hooks, record(NnsightEngine(opened(model))))
    assert_same(hooks, record(lens))
    assert hooks[1] is not None
    assert hooks[1].shape == (4, 100)


def test_three_engines_agree_on_smollm2_and_under_replacement(smollm):
    pytest.importorskip("transformer_lens")
    from glulens.probes.lens import LensEngine

    hooks, wrapped = HooksEngine(smollm.model), own(smollm)
    engine = make_engine(wrapped, "nnsight")
    ids = torch.tensor([smollm.tokenizer("Goldfish can remember things for months.")["input_ids"]])
    keep = torch.arange(ids.shape[1])
    cut = NeuronSet(hooks.widths, tuple(torch.arange(0, 1536, 7).numpy() for _ in hooks.widths))
    assert_same(record(hooks, ids, keep), record(engine, ids, keep))
    with torch.inference_mode():
        for spare in (False, True):
            visit = silencer(cut, spare_first=spare)(keep)
            ours = hooks.forward(ids, keep=keep, visit=visit)
            theirs = engine.forward(ids, keep=keep, visit=visit)
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
        lens = LensEngine(wrapped.model)
        last = lens.forward(ids, keep=keep, visit=silencer(cut, spare_first=True)(keep))
        torch.testing.assert_close(last, theirs, atol=1e-4, rtol=0)
        assert not torch.allclose(theirs, hooks.forward(ids, keep=keep), atol=0.1)  # pyright: ignore


@pytest.mark.parametrize("family", [family for family in ALL if family not in EXPERTS])
def test_every_dense_family_is_watched_and_shares_beginnings(family):
    model, ids = make(family), IDS % 60
    hooks = HooksEngine(model)
    expected, texts = record(hooks, ids), some_texts()
    likely = loglikelihoods(hooks, texts, max_tokens=64)
    engine = NnsightEngine(opened(model))
    assert_same(record(engine, ids), expected)
    assert engine.shares_up_to == hooks.shares_up_to > 0
    np.testing.assert_allclose(loglikelihoods(engine, texts, max_tokens=64), likely, atol=1e-5)
    apart = loglikelihoods(engine, texts, share=False)
    np.testing.assert_allclose(apart, likely, atol=2e-4)


def test_silencing_reaches_a_remembered_beginning():
    model = make("llama")
    hooks, engine = HooksEngine(model), NnsightEngine(opened(model))
    silence = silencer(NeuronSet(hooks.widths, (np.arange(12), np.arange(5, 20))))
    texts = some_texts()
    found = loglikelihoods(engine, texts, intervene=silence, max_tokens=128)
    expected = loglikelihoods(hooks, texts, intervene=silence, max_tokens=128)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - loglikelihoods(engine, texts)).max() > 0.01


def test_attributions_are_those_of_the_hooks(stories):
    pairs = {"fact": load_material(limit=3).pairs["fact"]}
    encoder = Encoder(stories.tokenizer)
    ours = record_contrasts(HooksEngine(stories.model), encoder, pairs, max_tokens=512)["fact"]
    engine = NnsightEngine(own(stories))
    theirs = record_contrasts(engine, encoder, pairs, max_tokens=512)["fact"]
    assert np.abs(ours.attribution).max() > 0.1
    np.testing.assert_allclose(theirs.attribution, ours.attribution, atol=1e-5)
    np.testing.assert_allclose(theirs.difference, ours.difference, atol=1e-5)
    np.testing.assert_allclose(theirs.loglikelihood, ours.loglikelihood, atol=1e-5)


def test_a_pruned_model_of_uneven_width_is_watched(tiny):
    model = tiny()
    resize(model, NeuronSet((48,) * 3, tuple(torch.arange(n).numpy() for n in (0, 10, 30))))
    engine = NnsightEngine(opened(model))
    assert engine.widths == (48, 38, 18)
    assert_same(record(engine), record(HooksEngine(model)))


def test_without_keep_no_logits_come_and_without_a_visit_no_activations(tiny):
    engine = NnsightEngine(opened(tiny()))
    assert engine.forward(IDS) is None
    rows, nothing = record(engine, keep=None)
    assert nothing is None
    torch.testing.assert_close(rows, record(engine)[0])
    torch.testing.assert_close(engine.forward(IDS, keep=KEEP), record(engine)[1])


def test_an_error_in_a_visit_comes_through_and_leaves_the_engine_usable(tiny):
    engine = NnsightEngine(opened(tiny()))
    before = record(engine)

    def visit(mlp, rows, places):
        if mlp == 1:
            raise MemoryError("on purpose")

    with pytest.raises(MemoryError, match="on purpose"):
        engine.forward(IDS, visit=visit)
    assert_same(record(engine), before, atol=0)


def test_wrapping_leaves_the_model_and_its_tokenizer_as_they_are(tiny, smollm, tmp_path):
    model = tiny()
    before = model(IDS).logits
    NnsightEngine(opened(model))
    engine = NnsightEngine(opened(model))  # twice
    assert torch.equal(model(IDS).logits, before)
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(IDS).logits, before)
    cut = NeuronSet(engine.widths, tuple(torch.tensor([1, 5]).numpy() for _ in engine.widths))
    with masked(model, cut):
        rows, logits = record(engine)
        assert_same((rows, logits), record(HooksEngine(model)))
    assert not rows[0][:, [1, 5]].any()
    side, pad = smollm.tokenizer.padding_side, smollm.tokenizer.pad_token
    tokenizer = NnsightEngine(replace(smollm, model=model)).wrapped.tokenizer
    assert tokenizer.padding_side == "left" != side
    assert (smollm.tokenizer.padding_side, smollm.tokenizer.pad_token) == (side, pad)


# Remotely


def test_what_is_sent_away_brings_back_the_same(stories, sent):
    ids = IDS.repeat(1, 3)
    modules, search = set(sys.modules), list(sys.path)
    assert_same(record(sent, ids), record(HooksEngine(stories.model), ids))
    assert modules <= set(sys.modules)
    assert sys.path == search
    assert sent.forward(ids) is None


def test_likelihoods_come_back_the_same_text_by_text(stories, sent):
    texts = some_texts(6)
    assert sent.shares_up_to == 0
    expected = loglikelihoods(HooksEngine(stories.model), texts)
    np.testing.assert_allclose(loglikelihoods(sent, texts), expected, atol=1e-4)


def test_a_remote_run_refuses_to_replace_and_to_share(stories, sent):
    cut = NeuronSet(sent.widths, tuple(torch.tensor([1]).numpy() for _ in sent.widths))
    visit = silencer(cut)(torch.arange(IDS.numel()))
    with pytest.raises(UsageError, match="a remote run can only record: interventions"):
        sent.forward(IDS, keep=KEEP, visit=visit)
    pairs = {"fact": load_material(limit=2).pairs["fact"]}
    with pytest.raises(UsageError, match="and attributions need the model on this machine"):
        record_contrasts(sent, Encoder(stories.tokenizer), pairs)
    with pytest.raises(ValueError, match="plain texts only"):
        sent.remember(IDS[:1])


@pytest.fixture
def ndif(monkeypatch):
    """NDIF by other means: what would be posted is run on a model of the server's own."""
    from nnsight.intervention.backends.remote import RemoteBackend
    from nnsight.modeling import huggingface
    from nnsight.schema.config import CONFIG
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.tracer import _saves

    served: dict[str, Any] = {}

    def request(backend, envelope, tracer):
        served["asked for"] = envelope.model_key
        blob = backend._serialize(tracer)
        served["bytes"] = len(blob)
        objects = served["model"]._remoteable_persistent_objects()
        there = RequestModel.deserialize(blob, objects, envelope.compress)
        sys.stdout.write("RUNNING")
        there.execute(there.info.code)
        saved = {k: v for k, v in there.info.frame.f_locals.items() if id(v) in _saves()}
        answer = io.BytesIO()
        torch.save(saved, answer)
        return backend.finalize(answer.getvalue())

    monkeypatch.setattr(RemoteBackend, "request", request)
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a key")
    monkeypatch.setattr(CONFIG.API, "COMPRESS", False)
    monkeypatch.setitem(huggingface._ID_CACHE, "org/name", "org/name")
    return served


def serve(ndif, model) -> None:
    ndif["model"] = NnsightEngine(opened(model)).wrapped


@pytest.mark.parametrize("name", ["org/name", "org/name@v1"])
def test_a_server_is_asked_by_id_and_runs_its_own_weights(tiny, ndif, name, capsys):
    theirs = tiny(seed=1)
    serve(ndif, theirs)
    engine = NnsightEngine(opened(tiny(seed=0), name, "hub"), remote=True)
    assert_same(record(engine), record(HooksEngine(theirs)))
    revision = '"v1"' if "@" in name else "null"
    assert ndif["asked for"].endswith(
        f'{{"repo_id": "org/name", "revision": {revision}, "task": "text-generation"}}'
    )
    assert ndif["bytes"] < 10_000  # the model stays here
    printed = capsys.readouterr()
    assert not printed.out
    assert "RUNNING" in printed.err


def test_a_server_whose_model_is_another_is_not_believed(tiny, ndif):
    serve(ndif, tiny(intermediate_size=40))
    engine = NnsightEngine(opened(tiny(), "org/name", "hub"), remote=True)
    with pytest.raises(ModelError, match="has 40 neurons on the server and 48 here"):
        record(engine)
    cut = NeuronSet(engine.widths, tuple(torch.tensor([1]).numpy() for _ in engine.widths))
    with masked(engine._model, cut), pytest.raises(UsageError, match="the server's is not"):
        record(engine)
    del ndif["model"]
    with pytest.raises(ModelError, match=r"org/name did not run remotely \('model'\)"):
        record(engine)


def test_what_a_remote_run_needs_is_asked_for(tiny, monkeypatch):
    from nnsight.schema.config import CONFIG

    model = tiny()
    with pytest.raises(UsageError, match="open the model as org/name, or leave --remote out"):
        make_engine(opened(model), "nnsight", remote=True)
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(UsageError, match="set NDIF_API_KEY before you start"):
        make_engine(opened(model, "org/name", "hub"), "nnsight", remote=True)
    monkeypatch.setattr(CONFIG.API, "HOST", "http://localhost:5001")
    assert NnsightEngine(opened(model, "org/name", "hub"), remote=True).device.type == "cpu"
    with pytest.raises(UsageError, match="allowed are False, True and 'local'"):
        NnsightEngine(opened(model), remote="elsewhere")


@pytest.mark.parametrize("family", EXPERTS)
def test_a_mixture_of_experts_is_refused(family):
    with pytest.raises(ModelError, match="use --engine hooks"):
        NnsightEngine(opened(make(family)))


def test_without_nnsight_the_way_to_install_it_is_told(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnsight", None)
    with pytest.raises(UsageError, match=r"pip install 'glulens\[nnsight\]'"):
        make_engine(opened(tiny()), "nnsight")


def test_importing_nnsight_breaks_nothing_of_others(tmp_path):
    import subprocess

    script = (
        "import sys; from glulens.probes.remote import _import_nnsight; _import_nnsight();"
        "import nnsight.schema.config as config; print(config.CONFIG.APP.DEBUG, sys.argv[1:]);"
        "import anyio.streams.file, anyio.streams.tls; anyio.abc.SocketAttribute, anyio.connect_tcp"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, "-v"], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "False ['-v']"

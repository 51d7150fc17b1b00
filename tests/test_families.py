"""Every family that the README names is read, watched, attributed and cut; others are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from glulens.errors import ModelError
from glulens.probes.contrasts import _read
from glulens.probes.hooks import HooksEngine
from glulens.probes.tokens import Encoded, batches
from glulens.prune.glu import SEPARATE_FAMILIES, glu_layers
from glulens.prune.selection import NeuronSet
from glulens.prune.surgery import masked, resize

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NAMES = {"gemma3": "gemma3_text"}
FAMILIES = [NAMES.get(name, name) for name in SEPARATE_FAMILIES.split(", ")]


def make(family: str, **changes):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SMALL, **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_resized_equals_reloaded(family, tmp_path):
    model = make(family)
    ids = torch.tensor([[5, 17, 40, 3, 42, 9]])
    layers = glu_layers(model)
    assert [layer.width for layer in layers] == [24, 24]
    cut = NeuronSet((24, 24), (np.arange(0, 24, 3), np.arange(8)))
    intact = model(ids).logits
    with masked(model, cut):
        silent = model(ids).logits
    assert not torch.allclose(intact, silent)
    torch.testing.assert_close(resize(model, cut)(ids).logits, silent, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, silent, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihood_and_attribution_are_the_models_own(family):
    """Softcapped or scaled heads and padded batches included."""
    model = make(family)
    engine = HooksEngine(model)
    texts = [Encoded((5, 17, 40, 3, 42, 9), 3), Encoded((7, 8, 50), 1)]
    (batch,) = batches(texts, 100, engine.device)
    activations, mean, attribution, found = _read(engine, batch)
    assert len(activations) == 2
    assert mean.shape == attribution.shape == (2, 48)
    for place, row in enumerate(batch.rows):
        text = texts[row]
        log_p = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        expected = sum(float(log_p[t - 1, text.ids[t]]) for t in range(text.start, len(text)))
        assert found[place] == pytest.approx(expected, abs=1e-4)


def test_families_without_separate_projections_are_refused():
    for family, changes in (("phi3", {}), ("mixtral", {}), ("gpt_neox", {})):
        with pytest.raises(ModelError, match=f"'{family}'.*supported are"):
            glu_layers(make(family, **changes))

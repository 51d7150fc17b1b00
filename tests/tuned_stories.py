"""Two models that differ by fine-tuning: stories260k, and the same after the built-in instructions.

In memory (`tuned_copy`, `fine_tune`) and as folders that every command opens (`tuned_pair`,
`save_stories`), with a tokenizer that Transformers reads.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OFFICIAL
from stories import StoriesTokenizer, open_stories

from glulens.datasets.pairs import INSTRUCTION, load_material
from glulens.probes.contrasts import encode_pairs
from glulens.probes.tokens import Encoder, batches
from glulens.prune.models import OpenedModel


def copy_of(opened: OpenedModel) -> OpenedModel:
    """The same model with weights of its own."""
    return replace(opened, model=copy.deepcopy(opened.model))


def fine_tune(
    opened: OpenedModel, *, steps: int = 60, rate: float = 2e-3, size: int = 2, seed: int = 0
) -> list[float]:
    """Fine-tune every weight in place on the built-in compliant responses; the loss of each step.

    AdamW without weight decay, loss on the responses' tokens alone.
    """
    model: Any = opened.model
    encoder = Encoder(opened.tokenizer, max_length=model.config.max_position_embeddings)
    texts = encode_pairs(encoder, load_material().pairs[INSTRUCTION])[0::2]
    rng = np.random.default_rng(seed)
    model.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        some = [texts[k] for k in rng.choice(len(texts), size, replace=False)]
        batch = next(batches(some, 1_000_000, torch.device("cpu")))
        scores = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        answer = batch.answer[:, 1:]
        loss = torch.nn.functional.cross_entropy(scores[answer], batch.ids[:, 1:][answer])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
    model.eval().requires_grad_(False)
    return losses


def tuned_copy(base: OpenedModel, *, steps: int = 60, seed: int = 0) -> OpenedModel:
    """A fine-tuned copy of stories260k; seconds."""
    tuned = copy_of(base)
    fine_tune(tuned, steps=steps, seed=seed)
    return tuned


def tuned_pair(folder: Path, *, steps: int = 60, seed: int = 0) -> tuple[Path, Path]:
    """Folders of stories260k and of a fine-tuned copy, `base` and `tuned` in `folder`; seconds."""
    where = OFFICIAL / "stories260k"
    if not where.is_dir():
        pytest.skip("no stories260k: set GLULENS_TEST_DATA to the folder that holds it")
    base = open_stories(where)
    return (
        save_stories(base, folder / "base"),
        save_stories(tuned_copy(base, steps=steps, seed=seed), folder / "tuned"),
    )


def save_stories(opened: OpenedModel, folder: Path) -> Path:
    """Save model and tokenizer as Transformers does; the folder."""
    tokenizer: Any = opened.tokenizer
    opened.model.save_pretrained(folder)
    for_transformers(tokenizer).save_pretrained(folder)
    return folder


def for_transformers(stories: StoriesTokenizer) -> Any:
    """The same encoding by the tokenizers library."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    # The first three stand for <unk>, BOS and EOS; the next 256 for single bytes.
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [piece.decode().replace(" ", "▁") for piece in stories.pieces[len(names) :]]
    vocabulary = {name: k for k, name in enumerate(names)}
    merges = []
    for k in range(259, len(names)):
        name = names[k]
        for cut in range(1, len(name)):
            if name[:cut] in vocabulary and name[cut:] in vocabulary:
                merges.append((-stories.scores[k], name[:cut], name[cut:]))
    merges.sort(key=lambda merge: merge[0])  # the best first, as both encoders take them
    model = models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for _, left, right in merges],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )

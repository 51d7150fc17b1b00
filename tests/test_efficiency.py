"""Efficiency: the numbers are of the models they claim to be of, and energy is never made up."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import says
from transformers import AutoModelForCausalLM

from glulens.errors import DataError, ModelError, ResourceError, UsageError
from glulens.interp import efficiency as work
from glulens.interp import energy
from glulens.interp.cli_efficiency import letter, terminal
from glulens.interp.efficiency import FIXED, UNTIL_END, efficiency, interval
from glulens.interp.efficiency_models import make_contenders
from glulens.interp.efficiency_options import make_efficiency_options
from glulens.interp.efficiency_plan import plan_efficiency
from glulens.interp.efficiency_runs import generate, passages, questions, undisturbed
from glulens.interp.energy import Counter, Meter, find_meter, find_rapl
from glulens.prune.masks import masked
from glulens.prune.mlps import find_mlps
from glulens.prune.scoring import score_mlps
from glulens.prune.selection import lowest

SHORT = {"prompt_tokens": 12, "new_tokens": 5, "batches": (1, 3), "rounds": 3}
PROMPTS = {"prompts": 2, "longest": 9}


def domain(folder: Path, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    """A RAPL domain as Linux shows it."""
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


def test_cuts_are_narrower_share_the_rest_and_answer_as_masked(stories):
    options = make_efficiency_options(fractions=(0.0, 0.5), criterion="ppm")
    intact, cut = make_contenders([stories], options)
    assert intact.model is stories.model
    assert [mlp.width for mlp in find_mlps(cut.model)] == [86] * 5
    assert [mlp.width for mlp in find_mlps(stories.model)] == [172] * 5
    shared = {p.data_ptr() for p in stories.model.parameters()}
    own = [name for name, p in cut.model.named_parameters() if p.data_ptr() not in shared]
    assert len(own) == 15
    assert all(".mlp." in name for name in own)
    gone = 5 * 86 * 3 * 64
    assert intact.size.parameters - cut.size.parameters == gone
    assert intact.size.weight_bytes - cut.size.weight_bytes == 4 * gone
    chosen = lowest(score_mlps(find_mlps(stories.model), ["ppm"])["ppm"], 0.5)
    ids = torch.tensor([stories.tokenizer("Once upon a time there was a")["input_ids"]])
    with torch.inference_mode(), masked(stories.model, chosen):
        wanted = stories.model(ids).logits
    with torch.inference_mode():
        torch.testing.assert_close(cut.model(ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_compensated_cuts_keep_the_intact_model(stories, monkeypatch):
    texts = ["Once upon a time there was a little dog.", "The sun was warm, and Tom ran home."]
    monkeypatch.setattr("glulens.interp.efficiency_models.calibration_texts", lambda: texts)
    before = {name: p.clone() for name, p in stories.model.named_parameters()}
    for method in ("lsq", "flap"):
        options = make_efficiency_options(fractions=(0.0, 0.4), compensate=method)
        plain = make_contenders([stories], make_efficiency_options(fractions=(0.4,)))[0]
        _, cut = make_contenders([stories], options)
        assert cut.size.name == f"stories260k -40% ppm +{method}"
        ids = torch.tensor([[5, 9, 40, 7]])
        with torch.inference_mode():
            assert not torch.allclose(cut.model(ids).logits, plain.model(ids).logits, atol=1e-2)
    after = dict(stories.model.named_parameters())
    assert all(torch.equal(after[name], p) for name, p in before.items())
    assert after.keys() == before.keys()


def test_the_loop_writes_what_transformers_would(stories):
    contender = make_contenders([stories], make_efficiency_options())[0]
    ids = passages(contender, ["Once upon a time there was a little dog."], 1, 12)
    seen: list[int] = []
    forward = stories.model.forward

    def listening(*args, **kwargs):
        out = forward(*args, **kwargs)
        seen.append(int(out.logits[0, -1].argmax()))
        return out

    stories.model.forward = listening
    try:
        run = generate(contender, ids, 7, Meter())
    finally:
        del stories.model.forward
    with torch.inference_mode():
        wanted = stories.model.generate(
            ids, max_new_tokens=7, min_new_tokens=7, do_sample=False, pad_token_id=0
        )
    assert seen == wanted[0, 12:].tolist()
    assert run.tokens == 7
    assert run.joules is None
    assert not run.ended


def test_an_answer_ends_where_the_model_ends_it(stories, monkeypatch):
    contender = make_contenders([stories], make_efficiency_options())[0]
    ids = passages(contender, ["Once upon a time there was a little dog."], 1, 12)
    with torch.inference_mode():
        whole = stories.model.generate(
            ids, max_new_tokens=9, min_new_tokens=9, do_sample=False, pad_token_id=0
        )[0, 12:].tolist()
    third = whole[2]
    monkeypatch.setattr(stories.tokenizer, "eos_token_id", third, raising=False)
    run = generate(contender, ids, 9, Meter(), stop=True)
    assert (run.tokens, run.ended) == (whole.index(third) + 1, True)
    assert generate(contender, ids, 9, Meter()).tokens == 9


def test_a_measurement(stories):
    done: list[tuple[int, int]] = []
    result = efficiency(
        stories,
        fractions=(0.0, 0.5),
        meter=Meter((), ["nothing counts"]),
        progress=lambda what, n, total: done.append((n, total)) if "runs" in what else None,
        **SHORT,
        **PROMPTS,
    )
    assert done[-1] == (24, 24)
    assert [size.neurons for size in result.sizes] == [860, 430]
    for place in (0, 1):
        for batch in (1, 3):
            values = result.samples[f"{place}|{FIXED}|{batch}|decode"]
            found = result.find(place, FIXED, batch, "decode")
            assert found is not None
            assert len(values) == 3
            assert found.low <= found.value == np.median(values) <= found.high
            first = result.samples[f"0|{FIXED}|{batch}|decode"]
            ratios = [a / b for a, b in zip(values, first, strict=True)]
            assert found.ratio == pytest.approx(np.median(ratios))
        length = result.find(place, UNTIL_END, 1, "length")
        ended = result.find(place, UNTIL_END, 1, "ended")
        assert length is not None
        assert ended is not None
        assert 1 <= length.value <= 9
        assert ended.value == 1 or length.value > 1
        assert result.find(place, FIXED, 1, "energy") is None
    said = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert said["about"]["energy"] == "energy: not measurable here (nothing counts)"
    assert not any(row["name"] == "energy" for row in said["measures"])
    shown = drawn(result)
    assert "not measurable here" in shown
    assert "J/token" not in shown


def test_energy_is_what_the_counter_says(stories):
    joules = iter(np.arange(0, 1e6, 2.5))
    meter = Meter([Counter("a test's", lambda: float(next(joules)))])
    settings = {**SHORT, **PROMPTS, "rounds": 2}
    result = efficiency(stories, meter=meter, **settings)
    for batch in (1, 3):
        found = result.find(0, FIXED, batch, "energy")
        assert found is not None
        # Every run begins with one reading and ends with the next: 2.5 J.
        assert found.value == pytest.approx(2.5 / (5 * batch))
    assert "J/token" in drawn(result)
    assert "energy: a test's" in drawn(result)


def test_metered_work_lasts(stories, monkeypatch):
    """A counter that steps ten times a second must not be read after a millisecond."""
    assert [work.times_over(s) for s in (0.001, 0.3, 0.5, 1.0, 7.0)] == [1000, 4, 2, 1, 1]
    readings: list[None] = []
    monkeypatch.setattr(work, "times_over", lambda seconds: 5)
    meter = Meter([Counter("", lambda: float(readings.append(None) or 0))])
    efficiency(stories, meter=meter, **{**SHORT, "rounds": 1, "prompts": 0, "batches": (1,)})
    assert len(readings) == 2 * 5


def drawn(result) -> str:
    from rich.console import Console

    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(result))
    return console.export_text()


def test_disturbed_rounds_are_said():
    samples = {f"0|{FIXED}|1|prefill": [1.0, 1.1, 0.9, 9.0], f"0|{FIXED}|1|rate": [1, 1, 1, 9]}
    about = {"device": "cpu", "cores": 2}
    settings = make_efficiency_options()
    assert work._warnings(settings, about, 0.1, samples) == [
        "1 of 4 times are over 2 times the median of their rounds: something held the machine up"
    ]
    samples[f"0|{FIXED}|1|prefill"][3] = 1.2
    assert work._warnings(settings, about, 0.1, samples) == []
    assert "the load was 3.0 on 2 cores" in work._warnings(settings, about, 3.0, samples)[0]


def test_intervals():
    assert interval([3.0], 0)[0] == 3.0
    assert all(map(math.isnan, interval([3.0], 0)[1:]))
    assert all(map(math.isnan, interval([], 0)))
    values = np.random.default_rng(0).normal(10, 1, 400)
    middle, low, high = interval(values.tolist(), 0)
    assert low < middle < high
    # Of a normal sample's median: 1.2533 sigma / sqrt(n) on each side, times 1.96.
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.25)


def test_rapl_counts_packages_and_memory_once(tmp_path):
    package = domain(tmp_path / "intel-rapl:0", "package-0", 900_000)
    memory = domain(tmp_path / "intel-rapl:0:1", "dram", 100)
    domain(tmp_path / "intel-rapl:0:0", "core", 100)
    domain(tmp_path / "intel-rapl:1", "psys", 100)
    domain(tmp_path / "intel-rapl-mmio:0", "package-0", 900_000)
    meter = find_meter(torch.device("cpu"), tmp_path)
    assert [c.name for c in meter.counters] == [
        "RAPL intel-rapl:0 package-0",
        "RAPL intel-rapl:0:1 dram",
    ]
    meter.start()
    (package / "energy_uj").write_text("200000")  # it has wrapped at a million
    (memory / "energy_uj").write_text("500100")
    assert meter.stop() == pytest.approx(0.3 + 0.5)


def test_without_counters_the_reason_is_said(tmp_path, monkeypatch):
    counters, why = find_rapl(tmp_path / "nowhere")
    assert (counters, "no RAPL counters" in why) == ([], True)
    meter = find_meter(torch.device("cpu"), tmp_path)
    meter.start()
    assert meter.stop() is None
    assert meter.describe().startswith("energy: not measurable here (no RAPL counters under")
    closed = domain(tmp_path / "intel-rapl:0", "package-0", 1) / "energy_uj"
    read = Path.read_text

    def forbidden(self, *args, **kwargs):
        if self == closed:
            raise PermissionError
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", forbidden)
    assert "may be read by root only" in find_meter(torch.device("cpu"), tmp_path).describe()
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: None)
    assert "pip install nvidia-ml-py" in find_meter(torch.device("cuda"), tmp_path).describe()


def test_the_gpus_counter_is_found_by_identity(tmp_path, monkeypatch):
    asked: list[str] = []
    millijoules = iter([1000, 4000, 9500])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules),
        nvmlDeviceGetName=lambda handle: b"A GPU",
    )
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(energy.importlib, "import_module", lambda name: nvml)
    properties = SimpleNamespace(uuid="1234-abcd")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    meter = find_meter(torch.device("cuda"), tmp_path)
    assert asked == ["GPU-1234-abcd"]
    assert meter.describe() == "energy: NVML A GPU"
    meter.start()
    assert meter.stop() == pytest.approx(5.5)


def test_a_plan_needs_no_weights_and_foretells_the_sizes(tiny, tmp_path):
    import families

    model = tiny(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    families.save_tokenizer(tmp_path)
    settings = make_efficiency_options(fractions=(0.0, 0.3), **SHORT, **PROMPTS)
    plan = plan_efficiency([str(tmp_path)], settings)
    contenders = make_contenders([str(tmp_path)], settings)
    assert plan.sizes == tuple(c.size for c in contenders)
    stored = {p.data_ptr(): p.nbytes for c in contenders for p in c.model.parameters()}
    assert plan.weight_bytes == sum(stored.values())
    assert plan.cache_bytes == 2 * 3 * 2 * 8 * (3 * 17) * 4
    assert plan.runs == 3 * 2 * (2 + 2)
    assert plan.steps == 3 * 2 * (5 + 5 + 9 + 9)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plan.sizes[0].parameters == sum(p.numel() for p in again.parameters())


def test_the_command(capsys, tmp_path):
    out, _ = says(capsys, "efficiency", "smollm2-135m-instruct", "--fractions", "0,0.5",
                  "--dry-run", "--json")  # fmt: skip
    plan = json.loads(out)
    assert [size["parameters"] for size in plan["sizes"]] == [134_515_008, 94_701_888]
    for words, said in (
        (["a", "b", "--fractions", "0,0.5"], "--fractions cuts one model"),
        (["a", "--fractions", "0,half"], "'half' is no number"),
        (["a", "--fractions", "1.5"], "fraction 1.5"),
        (["a", "--batch", "0"], "sizes of 1 or more"),
        (["a", "--batch", "x"], "'x' is no whole number"),
        (["a", "--new-tokens", "1"], "--new-tokens 1: at least 2"),
        (["a", "--compensate", "lsq"], "--compensate is of cuts"),
        (["a", "--criterion", "pmp"], "did you mean 'ppm'?"),
        (["a", "--fractions", "0.5", "--criterion", "wanda"], "looks at activations"),
    ):
        _, err = says(capsys, "efficiency", *words, code=2)
        assert said in err
    _, err = says(capsys, "efficiency", "./nowhere", code=3)
    assert "no such file or folder" in err


def test_what_does_not_fit_the_context_is_said(stories):
    with pytest.raises(UsageError, match="exceed its context of 512; lower --prompt-tokens"):
        efficiency(stories, prompt_tokens=500, new_tokens=20)
    with pytest.raises(UsageError, match="exceed its context of 512; lower --longest"):
        efficiency(stories, prompt_tokens=8, new_tokens=2, longest=510)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compensate": "magic", "fractions": (0.5,)}, "compensate 'magic'; allowed are none"),
        ({"fractions": (0.5, 0.0, 0.5)}, "a fraction is given twice"),
        ({"dtype": "int4"}, "dtype 'int4'; allowed are auto"),
        ({"prompts": 10**6}, "--prompts 1000000: there are"),
    ],
)
def test_bad_options_are_told_before_anything_is_measured(stories, options, said):
    with pytest.raises(UsageError, match=said):
        efficiency(stories, **options)


def test_no_model_is_told(stories):
    with pytest.raises(UsageError, match="no model given; name one or more"):
        efficiency([])
    with pytest.raises(UsageError, match="no model given"):
        plan_efficiency([], make_efficiency_options())


def test_the_terminal_shows_tables_and_warns_beside_them(stories, capsys, monkeypatch):
    result = efficiency(stories, **{**SHORT, "rounds": 1, "prompts": 0})
    told = replace(result, warnings=("something held\x1b the machine up",))
    monkeypatch.setattr(work, "efficiency", lambda models, **options: told)
    out, err = says(capsys, "efficiency", "a-model", "--prompts", "0")
    assert "Fixed length: 12 tokens read, 5 written" in out
    assert "Until end of text" not in out, "nothing was asked until the end"
    assert err == "warning: something held\\x1b the machine up\n"
    out, _ = says(capsys, "efficiency", "a-model", "--json")
    assert json.loads(out)["warnings"] == ["something held\x1b the machine up"]
    _, err = says(capsys, "efficiency", "a-model", "--batch", ", ,", code=2)
    assert "--batch ', ,': write numbers with commas, as in 1,8" in err


def test_a_plan_in_words(tiny, tmp_path, capsys):
    import families

    tiny().save_pretrained(tmp_path)
    families.save_tokenizer(tmp_path)
    words = ("efficiency", tmp_path, "--batch", "2", "--rounds", "3", "--prompts", "1", "--device")
    out, _ = says(capsys, *words, "cpu", "--dry-run")
    size, memory, runs, time = out.splitlines()
    parameters = sum(p.numel() for p in tiny().parameters())
    assert size.startswith(f"{tmp_path}: 144 neurons, {parameters:,} parameters")
    assert "of weights side by side" in memory
    assert runs == f"runs: 6, forwards: at most {3 * (64 + 128):,}"
    assert time.startswith("time: about")


def test_a_model_in_memory_is_planned_as_one_on_disk(tiny, tmp_path, stories):
    import families

    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    families.save_tokenizer(tmp_path)
    plan = plan_efficiency([stories], make_efficiency_options(**SHORT))
    assert plan.sizes == (make_contenders([stories], make_efficiency_options())[0].size,)
    with pytest.raises(ModelError, match="no plan can be made of its config"):
        plan_efficiency([str(tmp_path)], make_efficiency_options())


def test_memory_that_runs_out_names_what_to_lower(stories, monkeypatch):
    contender = make_contenders([stories], make_efficiency_options())[0]
    ids = torch.tensor([[1, 5, 9]])

    def fails(message: str) -> None:
        def forward(*_: object, logits_to_keep: int = 0, **__: object) -> None:
            raise RuntimeError(message)

        monkeypatch.setattr(stories.model, "forward", forward, raising=False)

    fails("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(ResourceError, match=r"1 rows of 3 \+ 4 tokens; lower --batch"):
        generate(contender, ids, 4, Meter())
    fails("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot"):
        generate(contender, ids, 4, Meter())


def test_instructions_go_through_the_chat_template(stories):
    from tuned_stories import for_transformers

    tokenizer = for_transformers(stories.tokenizer)
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[model]{% endif %}"
    )
    opened = replace(stories, tokenizer=tokenizer)
    contender = make_contenders([opened], make_efficiency_options())[0]
    plain = make_contenders([opened], make_efficiency_options(chat=False))[0]
    assert (contender.chat, plain.chat) == (True, False)
    found, bare = (questions(of, ["Say hello."], 8)[0][0].tolist() for of in (contender, plain))
    assert found.count(1) == bare.count(1) == 1, "the template has written BOS already"
    said = tokenizer.decode(found, skip_special_tokens=True)
    assert said.split() == ["[user]", "Say", "hello.", "[model]"]
    assert tokenizer.decode(bare, skip_special_tokens=True).strip() == "Say hello."


def test_texts_without_a_token_are_told(stories):
    contender = make_contenders([stories], make_efficiency_options())[0]
    with pytest.raises(DataError, match="no text to read before the first token"):
        passages(contender, [], 1, 4)


def test_the_collector_is_left_as_it_was():
    for on in (False, True):
        (gc.enable if on else gc.disable)()
        try:
            with undisturbed():
                assert not gc.isenabled()
            assert gc.isenabled() == on
        finally:
            gc.enable()


def test_compensation_is_calibrated_on_the_built_in_passages():
    from glulens.datasets.neutral import load_neutral
    from glulens.interp.efficiency_models import calibration_texts

    assert calibration_texts() == [passage.text for passage in load_neutral().records]


def test_letters():
    assert [letter(k) for k in (0, 25, 26, 27, 52, 701, 702)] == [
        "A", "Z", "AA", "AB", "BA", "ZZ", "AAA",
    ]  # fmt: skip

"""Tests of the constructed IFEval pairs: what is cut, what is written, and how much is usable."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from glulens.datasets.ifeval_pairs import compliant_opening, without_instruction

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("GLULENS_TEST_DATA", ROOT.parent / "shared" / "data"))
OFFICIAL = DATA / "ifeval" / "input_data.jsonl"

CUT = [
    (
        "punctuation:no_comma",
        "Write a song about a lighthouse. Do not use any commas in your response.",
        "Write a song about a lighthouse.",
    ),
    (
        "punctuation:no_comma",
        "Write a riddle about a kettle without using any commas.",
        "Write a riddle about a kettle.",
    ),
    (
        "length_constraints:number_words",
        'Write a 300+ word summary of the page "How bread rises".',
        'Write a summary of the page "How bread rises".',
    ),
    (
        "length_constraints:number_sentences",
        "Write a template with less than 7 sentences for how to book a hall.",
        "Write a template for how to book a hall.",
    ),
    (
        "change_case:english_lowercase",
        "Compose a poem all in lowercase letters about my friend Ada.",
        "Compose a poem about my friend Ada.",
    ),
    (
        "change_case:english_capital",
        "Write an essay about owls in English and in all capital letters.",
        "Write an essay about owls.",
    ),
    (
        "startend:quotation",
        "Aim the blog post on bees at hobbyists and wrap your entire response with double "
        "quotation marks.",
        "Aim the blog post on bees at hobbyists.",
    ),
    (
        "startend:end_checker",
        'How do I prune roses? Finish your response with "Good luck." No other words should '
        "follow this phrase.",
        "How do I prune roses?",
    ),
    (
        "detectable_format:title",
        "Draft a speech for a farewell. Your answer must contain a title, wrapped in double "
        "angular brackets, i.e. <<title>>. Keep it warm.",
        "Draft a speech for a farewell. Keep it warm.",
    ),
    (
        "detectable_format:number_bullet_lists",
        "Why is chess so popular? Your answer must contain exactly 2 bullet points such as:\n"
        "* Bullet one\n* Bullet two\n\nThink of beginners.",
        "Why is chess so popular?\n\nThink of beginners.",
    ),
    (
        "detectable_format:json_format",
        "What is the history of the abacus? Please wrap your entire answer in JSON format. You "
        "can use markdown ticks such as ```. For example:\n```JSON\n{\n...\n}\n```",
        "What is the history of the abacus?",
    ),
    (
        "detectable_format:constrained_response",
        "Is Mercury closer than Venus?\n\nYour answer must contain one of the following phrases:\n"
        "My answer is yes.\nMy answer is no.\nMy answer is maybe.",
        "Is Mercury closer than Venus?",
    ),
    (
        "detectable_content:postscript",
        "Could you suggest a name for a bakery? At the end of your response, please explicitly "
        "add a postscript starting with P.P.S",
        "Could you suggest a name for a bakery?",
    ),
    (
        "detectable_content:number_placeholders",
        "Rewrite the following sentence into an email, and make sure it contains at least 3 "
        "placeholders represented by square brackets, such as [name]: The boots are warm.",
        "Rewrite the following sentence into an email: The boots are warm.",
    ),
    (
        "combination:repeat_prompt",
        "First repeat the request below word for word without change, then give your answer. Do "
        "not say any words or characters before repeating the request.\n\nWrite a story about a "
        "potter.",
        "Write a story about a potter.",
    ),
    (
        "combination:two_responses",
        "What do wolves eat in winter? Give exactly two different responses separated by 6 "
        "asterisk symbols ******.",
        "What do wolves eat in winter?",
    ),
    (
        "keywords:forbidden_words",
        'Can you rewrite "It rained all day" in a grand tone, without using the word "wet" or '
        '"sky"?',
        'Can you rewrite "It rained all day" in a grand tone?',
    ),
    (
        "language:response_language",
        "Write a short note to the baker entirely in the Portuguese language, no other language is "
        "allowed, about Sunday bread.",
        "Write a short note to the baker about Sunday bread.",
    ),
]

SHOWN = [
    ("detectable_format:title", {}, "<<A Short Title>>\nHere is a short answer, plain and clear."),
    ("startend:quotation", {}, '"Here is a short answer, plain and clear."'),
    ("change_case:english_capital", {}, "HERE IS A SHORT ANSWER, PLAIN AND CLEAR."),
    ("change_case:english_lowercase", {}, "here is a short answer, plain and clear."),
    (
        "detectable_format:json_format",
        {},
        '{"response": "Here is a short answer, plain and clear."}',
    ),
    ("punctuation:no_comma", {}, "Here is a short answer that is plain and clear."),
    (
        "detectable_format:constrained_response",
        {},
        "My answer is maybe. There are good points on both sides.",
    ),
    ("combination:two_responses", {}, "Here is one answer.\n******\nHere is another one."),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a story about a potter."},
        "Write a story about a potter.\nHere is a short answer, plain and clear.",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        "Here is a short answer, plain and clear.\nP.P.S I hope it helps.",
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "Here is a short answer, plain and clear. Note [first detail] and [second detail].",
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        "Here is a short answer, plain and clear.\n* first point\n* second point",
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "Here is a short answer, plain and clear. Note *first point* and *second point*.",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\nHere is the first part.\nSECTION 2\nHere is the second part.",
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "Here is the first part.\n***\nHere is the second part.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "rain"},
        "Here is the first part.\n\nRain opens this part.",
    ),
    (
        "keywords:existence",
        {"keywords": ["cat", "dog"]},
        "Here is a short answer, plain and clear. Key words: cat and dog.",
    ),
    (
        "keywords:frequency",
        {"keyword": "owl", "relation": "at least", "frequency": 2},
        "Here is a short answer, plain and clear. Key word: owl and owl.",
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Does this make sense?"},
        "Here is a short answer, plain and clear.\nDoes this make sense?",
    ),
    (
        "language:response_language",
        {"language": "de"},
        "Hier ist eine kurze und klare Antwort auf die Anfrage.",
    ),
]


def assert_comes_from(text: str, prompt: str) -> None:
    """The text is the prompt with pieces left out: its sentences occur there, in order.

    A sentence that lost a clause is made of two (at most three) pieces that occur.
    """
    rest = iter(prompt)
    assert all(char in rest for char in text)
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        pieces, left = 0, sentence
        while left:
            size = max(n for n in range(1, len(left) + 1) if left[:n] in prompt)
            pieces, left = pieces + 1, left[size:]
        assert pieces <= 3, sentence


@pytest.mark.parametrize(("kind", "prompt", "expected"), CUT)
def test_cut(kind: str, prompt: str, expected: str) -> None:
    assert without_instruction(prompt, [kind]) == expected


@pytest.mark.parametrize(("kind", "prompt", "expected"), CUT)
def test_cut_keeps_the_rest(kind: str, prompt: str, expected: str) -> None:
    text = without_instruction(prompt, [kind])
    assert text is not None
    assert text != prompt
    assert_comes_from(text, prompt)
    assert without_instruction(text, [kind]) is None


def test_cut_of_several_kinds() -> None:
    kinds = ["punctuation:no_comma", "detectable_format:title", "length_constraints:number_words"]
    prompt = (
        "Write a poem about a curious cat with at least 40 words. The poem must have a title "
        "wrapped in double angular brackets, i.e. <<title>>, and no commas."
    )
    assert without_instruction(prompt, kinds) == "Write a poem about a curious cat."


def test_cut_keeps_the_part_of_a_directive_that_says_what_to_write() -> None:
    prompt = (
        "Write a resume for a nurse. The resume should be good enough for a big hospital and "
        "should not contain any commas."
    )
    expected = "Write a resume for a nurse. The resume should be good enough for a big hospital."
    assert without_instruction(prompt, ["punctuation:no_comma"]) == expected


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        ("Write a song about a lighthouse.", ["punctuation:no_comma"]),
        ("Write a song about a lighthouse. Use no commas.", ["made_up:kind"]),
        ("Write a song about a lighthouse. Use no commas.", []),
        ("Sing it. Use no commas.", ["punctuation:no_comma"]),
        ("Do not use any commas in your response.", ["punctuation:no_comma"]),
        # One of the two kinds is not stated in a way that can be cut.
        (
            "Write exactly 4 paragraphs about car seats. Use no commas.",
            ["punctuation:no_comma", "length_constraints:number_paragraphs"],
        ),
    ],
)
def test_no_clean_cut(prompt: str, kinds: list[str]) -> None:
    assert without_instruction(prompt, kinds) is None


def test_cut_ignores_unknown_kinds_and_quoted_text() -> None:
    prompt = 'Translate "Do not use any commas. Be brief." into Latin. Use no commas.'
    expected = 'Translate "Do not use any commas. Be brief." into Latin.'
    assert without_instruction(prompt, ["made_up:kind", "punctuation:no_comma"]) == expected


@pytest.mark.parametrize(("kind", "args", "expected"), SHOWN)
def test_opening(kind: str, args: dict[str, object], expected: str) -> None:
    assert compliant_opening([kind], [args]) == expected


def test_opening_of_several_kinds() -> None:
    text = compliant_opening(
        [
            "startend:quotation",
            "detectable_format:title",
            "punctuation:no_comma",
            "change_case:english_lowercase",
            "keywords:existence",
            "length_constraints:number_words",
        ],
        [{}, {}, {}, {}, {"keywords": ["cat", "dog"]}, {"relation": "at least", "num_words": 300}],
    )
    assert text == (
        '"<<a short title>>\nhere is a short answer that is plain and clear. '
        'key words: cat and dog."'
    )


@pytest.mark.parametrize(
    ("kinds", "kwargs"),
    [
        ([], []),
        (["made_up:kind"], [{}]),
        (["length_constraints:number_words"], [{"relation": "at least", "num_words": 300}]),
        (["keywords:forbidden_words"], [{"forbidden_words": ["slow"]}]),
        (
            ["keywords:letter_frequency"],
            [{"let_relation": "at least", "letter": "q", "let_frequency": 4}],
        ),
        (["keywords:frequency"], [{"relation": "less than", "keyword": "owl", "frequency": 2}]),
        (["language:response_language"], [{"language": "xx"}]),
        # Too long to show in 25 words, and two bodies that exclude one another.
        (["detectable_content:number_placeholders"], [{"num_placeholders": 20}]),
        (["combination:repeat_prompt"], [{"prompt_to_repeat": "word " * 30}]),
        (
            ["combination:two_responses", "length_constraints:number_paragraphs"],
            [{}, {"num_paragraphs": 3}],
        ),
        # The base sentence itself would break the limit.
        (
            ["startend:quotation", "keywords:letter_frequency"],
            [{}, {"let_relation": "less than", "letter": "e", "let_frequency": 1}],
        ),
    ],
)
def test_no_opening(kinds: list[str], kwargs: list[dict[str, object]]) -> None:
    assert compliant_opening(kinds, kwargs) is None


def test_opening_avoids_forbidden_words() -> None:
    kinds = ["keywords:forbidden_words", "keywords:existence"]
    text = compliant_opening(kinds, [{"forbidden_words": ["answer"]}, {"keywords": ["a", "b"]}])
    assert text == "Here it is. Key words: a and b."


def test_official_prompts() -> None:
    if not OFFICIAL.is_file():
        pytest.skip(f"official IFEval is not at {OFFICIAL} (set GLULENS_TEST_DATA)")
    items = [json.loads(line) for line in OFFICIAL.read_text(encoding="utf-8").splitlines()]
    assert len(items) == 541
    cut = opened = both = 0
    for item in items:
        kinds = item["instruction_id_list"]
        text = without_instruction(item["prompt"], kinds)
        opening = compliant_opening(kinds, item["kwargs"])
        cut += text is not None
        opened += opening is not None
        both += text is not None and opening is not None
        if text is not None:
            assert text != item["prompt"]
            assert len(text.split()) >= 4
            assert_comes_from(text, item["prompt"])
        if opening is not None and "punctuation:no_comma" in kinds:
            assert "," not in opening
    assert cut >= 493
    assert opened >= 402
    assert both >= 369

"""Answers to IFEval's prompts, made of what the instructions ask for: some obey, some do not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SENTENCES = (
    "Dr. Smith lives in the U.S. and likes it.",
    "He met Mrs. Jones at 5 p.m. in St. Louis!",
    "Was it cold, e.g. on Jan. 3, or not?",
    "NASA paid $3.50 for it (see fig. 2 of Vol. 7).",
    "Nobody knows why the NEW plan by Acme Inc. worked.",
    "They said no. Then they left...",
    "It was good... but not great.",
    "A. B. Brown wrote it",
)
"""Full stops that end a sentence, and some that do not."""
IN_LANGUAGE = {
    "de": "Das ist ein ganz gewöhnlicher Satz über das Wetter und die Leute in der Stadt.",
    "hi": "यह मौसम के बारे में एक साधारण वाक्य है और कुछ नहीं।",
    "ru": "Это обычное предложение о погоде и о людях в городе.",
    "it": "Questa è una frase normale sul tempo e sulla gente della città.",
}


def canned(document: Mapping[str, Any], number: int) -> str:
    """One of five answers: obedient, obedient but for a preamble (only loosely right), prose that
    ignores what was asked for, obedient to all but the first instruction, or nothing."""
    kind = number % 5
    if kind == 2:
        return " ".join(SENTENCES[(number + k) % len(SENTENCES)] for k in range(3 + number % 7))
    if kind == 4:
        return " \n" if number % 2 else "the " * (number % 400)
    asked = list(zip(document["instruction_id_list"], document["kwargs"], strict=True))
    text = _obedient(asked[1:] if kind == 3 else asked, document["prompt"], number)
    return f"Sure, here it is:\n{text}\n*I hope, it helps.*" if kind == 1 else text


def _obedient(asked: list[tuple[str, Any]], prompt: str, number: int) -> str:
    parts: list[str] = []
    before: list[str] = []
    after: list[str] = []
    kinds = [kind for kind, _ in asked]
    for kind, given in asked:
        given = {k: v for k, v in given.items() if v is not None}
        n = next((int(v) for k, v in given.items() if k.startswith("num_") or "freq" in k), 2)
        fewer = given.get("relation", given.get("let_relation", "")) == "less than"
        fewer = fewer or given.get("capital_relation") == "less than"
        n = max(n - 1, 1) if fewer else n
        match kind.split(":")[1]:
            case "number_words":
                parts.append("word " * n)
            case "number_sentences":
                parts.append(" ".join(SENTENCES[k % len(SENTENCES)] for k in range(n)))
            case "number_paragraphs":
                parts.append(" *** ".join(["some words here"] * n))
            case "nth_paragraph_first_word":
                words = ["another paragraph"] * n
                words[int(given.get("nth_paragraph", 1)) - 1] = f"{given.get('first_word')} is it"
                parts.append("\n\n".join(words))
            case "number_placeholders":
                parts.append("[name] " * n)
            case "postscript":
                after.append(f"\n{given.get('postscript_marker', 'P.S.')} more of it")
            case "title":
                before.append("<<a title>>\n")
            case "json_format":
                parts.append(json.dumps({"answer": number}))
            case "number_bullet_lists":
                parts.append("\n".join(f"* point {k}" for k in range(n)))
            case "number_highlighted_sections":
                parts.append("*highlighted part* " * n)
            case "multiple_sections":
                mark = given.get("section_spliter", "Section")
                parts.append("\n".join(f"{mark} {k + 1}\ntext" for k in range(n)))
            case "constrained_response":
                parts.append("My answer is maybe.")
            case "end_checker":
                after.append(f"\n{given.get('end_phrase')}")
            case "existence":
                parts.append(" ".join(given.get("keywords", [])))
            case "frequency":
                parts.append(f"{given.get('keyword')} " * n)
            case "letter_frequency":
                parts.append(f"{given.get('letter')} " * n)
            case "capital_word_frequency":
                parts.append("WORD U.S. " * n + "ends in the U.S.")
            case "two_responses":
                parts.append("one answer ****** another answer")
            case "repeat_prompt":
                before.insert(0, f"{given.get('prompt_to_repeat', prompt)}\n")
            case "response_language":
                parts.append(IN_LANGUAGE.get(given.get("language", ""), SENTENCES[0]))
    text = "".join([*before, "\n".join(parts or ["a plain and simple answer to this"]), *after])
    if "change_case:english_capital" in kinds:
        text = f"this is what we have to say about the weather in the city. {text}".upper()
    if "change_case:english_lowercase" in kinds:
        text = f"this is what we have to say about the weather in the city. {text}".lower()
    if "punctuation:no_comma" in kinds:
        text = text.replace(",", "")
    return f'"{text}"' if "startend:quotation" in kinds else text

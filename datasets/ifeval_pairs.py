"""Build the two halves of an instruction-following contrast that official IFEval lacks.

IFEval ships prompts with verifiable instructions, but no responses and no copy of a prompt that
asks for the same thing without the instruction. A paired contrast needs both, so:

* ``without_instruction`` cuts the sentences, clauses and format examples that state the
  instruction out of a prompt, by patterns per instruction kind;
* ``compliant_opening`` writes a short generic text that visibly complies with the instructions.

What this does NOT show: the openings are ours, not IFEval's and not a model's. They show the form
but never answer the request, and lengths or letter counts cannot be shown in them. The request is
cut by pattern, not by a reader: what else a prompt demands (a tone, a format IFEval does not
check) mostly stays in, and a cut can be clumsy. Where a listed kind cannot be cut whole, the
answer is ``None``, so the prompts that remain are not a random sample of IFEval.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_Args = Mapping[str, Any]
_IN = "language:response_language"
_I = re.IGNORECASE
_ITEM = r"(?:[\"“'][^\"”'\n]*[\"”']|[\w-]+)"
_COUNT = r"(?:at least|at most|less than|fewer than|more than|exactly) \w+"
_LANGUAGE = (
    r"\b(?-i:Arabic|Bengali|Bulgarian|Finnish|German|Gujarati|Hindi|Italian|Kannada|Korean|Marathi|"
    r"Nepali|Persian|Portuguese|Punjabi|Russian|Swahili|Tamil|Telugu|Thai|Urdu|Vietnamese)\b"
)
# Loose: which kind does a sentence state, given that it reads as a directive on the response?
_STATES = {
    kind: re.compile(pattern, _I)
    for kind, pattern in {
        "change_case:capital_word_frequency": r"\bcaps\b|capital|\bstress",
        "change_case:english_capital": r"capital|\bcaps\b|lower ?case",
        "change_case:english_lowercase": r"lower ?-?case|capital",
        "combination:repeat_prompt": r"\brepl?eat|not (?:change|say|output|add)|^after (?:you|th)",
        "combination:two_responses": r"asterisk|\*{6}|separat|exactly two|two different|distinct",
        "detectable_content:number_placeholders": r"placeholder|square brackets",
        "detectable_content:postscript": r"post ?script|P\.\s?S\b|note starting",
        "detectable_format:constrained_response": r"phrase|choose|just say|^answer|options",
        "detectable_format:json_format": r"\bjson|markdown ticks",
        "detectable_format:multiple_sections": r"sections?\b|\bparts\b|paragraph x|day x|audience",
        "detectable_format:number_bullet_lists": r"bullet",
        "detectable_format:number_highlighted_sections": r"highlight|itali[cz]|\*\w[^*\n]*\*",
        "detectable_format:title": r"title|angular",
        "keywords:existence": r"keyword|\bwords?\b|these items|phrase|\b(?:includes?|mention)\b",
        "keywords:forbidden_words": r"(?:\bnot\b|n['\u2019]t\b|cannot|avoid|without|exclude)"
        r".*(?:words?\b|includ|say|mention|contain|\buse|appear)|^avoid|another word|words.*cannot",
        "keywords:frequency": r"\bword\b|keyword|mention|\btimes\b",
        "keywords:letter_frequency": r"\bletters? (?:\"|'|\w\b)|hashtags|exclamation",
        "language:response_language": rf"language|\b(?:only|entirely|completely) |{_LANGUAGE}",
        "length_constraints:nth_paragraph_first_word": r"paragraph|new lines|line breaks",
        "length_constraints:number_paragraphs": r"paragraphs?\b|\*\*\*|divider|stanza|\bparts\b|"
        r"sections\b|format below|exact format|separat",
        "length_constraints:number_sentences": r"sentences?\b|punctuation",
        "length_constraints:number_words": r"\bwords?\b|length|reply short",
        "punctuation:no_comma": r"comma",
        "startend:end_checker": r"\bends?\b|finish|should follow|very last|words|say anything",
        "startend:quotation": r"\bquot",
    }.items()
}
# Tight: a clause that can be cut out of the very sentence that carries the request.
_CLAUSE = {
    kind: re.compile(pattern, _I)
    for kind, pattern in {
        "change_case:english_capital": r"(?: in English and)? in all capital letters"
        r"(?:, no lowercase letters allowed| and in English)?",
        "change_case:english_lowercase": r" (?:all in|in all) lowercase letters(?:, with no "
        r"capitalizations| and no capital letters)?|,? without using (?:any )?capital letters",
        "detectable_content:number_placeholders": rf" (?:that )?(?:contains|includes|with) {_COUNT}"
        r" placeholders?(?: represented by square brackets)?(?:,? such as \[[^\]]*\])?",
        "detectable_format:json_format": r"(?: wrapped)? in JSON format",
        "detectable_format:multiple_sections": r" (?:with|in) \w+ sections(?: \(.*?\))?|(?<= a) \d "
        r"section(?= )",
        "detectable_format:number_bullet_lists": r" using markdown bullet points such as:|"
        r" with exactly \w+ bullet points?(?: in markdown format)?",
        "keywords:forbidden_words": r",? (?:(?:but|that) doesn't (?:use|include)|without (?:using|"
        rf"saying)) the (?:key)?words? {_ITEM}(?:(?:, and|, or|,| and| or) {_ITEM})*",
        "language:response_language": rf",?(?: (?:only|entirely|in|using|the))+ {_LANGUAGE}"
        r"(?: language)?(?:, no other language is allowed,?| throughout your entire response|$)",
        "length_constraints:number_paragraphs": r" (?:in|of) exactly \w+ paragraphs(?:, separated "
        r"with the markdown divider: \*\*\*)?|,? and exactly \w+ sections",
        "length_constraints:number_sentences": r",? (?:with|using|into|and|that contains) "
        rf"{_COUNT} sentences",
        "length_constraints:number_words": r",? (?:with|that's|of|that has|using) "
        rf"(?:{_COUNT} words|\d+ or more words|\d+ words or less)|, \d+\+ word\b|"
        r" \d+\+ word(?= [^aeiou])",
        "punctuation:no_comma": r",?(?: and)? (?:without (?:using )?(?:the use of )?(?:any )?|that "
        r"doesn't use )commas?",
    }.items()
}
_DIRECTIVE = re.compile(
    r"""(?:\(?\d\.\s)?
    (?:(?:please|also|additionally|and|then|finally|remember|so|but|basically|first|just|kindly|
          (?:in|at\ the\ end\ of)\ (?:your|the)\ (?:entire\ )?(?:response|answer|poem)|
          in\ (?:addition|particular|other\ words)|
          (?:in|throughout|at|before|after|for|to)\b[^,.:]{0,60},)\W*\s)*
    (?:(?:make|making|mark)\s(?:it\s)?sure|ensure|do\ not|don['\u2019]?t|avoid|refrain|exclude|
       includes?\b|use\b|add\b|mention|contain\b|highlight|italici[sz]e|wrap|put\b|separated?\b|
       break|label|mark|keep|limit|control|have\b|end\b|finish|respond|reply|answer|repl?eat|choose|
       let['\u2019]s|start|explicitly|capitali[sz]e|no\ |not\ a|write\ it|format\ your|
       give\ (?:me\ )?(?:exactly|your\ answer)|(?:write|provide)\ (?:exactly|at\ least|less)|
       double\ quotes|outside|at\ least\ \d|make\ your\ (?:entire\ )?(?:output|response|reply)|
       be\ (?:in|sure)|(?:should|must|cannot|you|follow|sections|commas|markdown)\b|bullet\ points|
       words\ with|i\ need\ you\ to|i\ want\ the\ (?:entire|\w+\ to)|
       i(?:\ would|['\u2019]d)\ like\b[^.]*\b(?:you|your|there)\b|
       there\ should|(?:your|the|it|its|this|each|all|one|words?|paragraphs?|output|responses)\b
       [^.:]{0,90}?\b(?:should|must|can|cannot|has\ to|needs?\ to|are\ acceptable)\b)""",
    _I | re.X,
)
# A directive with one of these also says what to write, so it is not cut as a whole.
_SUBSTANCE = re.compile(
    r"\babout\b|\bstyle\b|rhyme|\btone\b|funny|interesting|weird|audience|topic|\bteen|casual", _I
)
_MORE = re.compile(
    r"(?:(?:for|an?|one) )?example|(?:such as|like):|no (?:other|additional)|in other words|"
    r"this phrase|(?:please )?follow the format",
    _I,
)
_JOINT = re.compile(r",? (?:and|but|then) |[,;] | -+ ")
_LISTLIKE = re.compile(r"\s*(?:\*|\.\.\.|`|[{}\[]|\"$)")
_QUOTED = re.compile(r"[“”\"][^“”\"\n]{2,}[”\"]|(?<![\w'])'[^'\n]{2,}'(?!\w)")


def _mask(text: str) -> str:
    """Blank what stands in quotation marks (same length), so that nothing is cut inside it."""
    return _QUOTED.sub(lambda m: m[0][0] + "_" * (len(m[0]) - 3) + m[0][-2:], text)


def _sentences(masked: str) -> list[tuple[int, int]]:
    """Spans of the sentences (a line break always ends one)."""
    spans, at = [], 0
    for gap in re.finditer(r"\s+|$", masked):
        before, after = masked[at : gap.start()], masked[gap.end() : gap.end() + 9]
        ends = re.search(r"(?:[.!?][”\"')]*|\bP\.P\.S)$", before)
        short = re.search(r"(?:\b(?:i\.e|e\.g|etc|vs|Mrs?)|^\s*\d)\.$", before)
        opens = re.match(r"[^a-z-]|(?:include|use|your|you|separate)\b", after)
        if "\n" in gap[0] or not after or (ends and opens and not short):
            if before.strip():
                spans.append((at, gap.start()))
            at = gap.end()
    return spans


def _cuts(sentence: str, kinds: set[str], follows: bool) -> tuple[list[tuple[int, int]], set[str]]:
    """What to cut from one (masked) sentence, and the kinds that the cut text states."""

    def stated(text: str) -> set[str]:
        hit = {kind for kind in kinds if _STATES[kind].search(text)}
        return hit if _DIRECTIVE.match(text) and not _SUBSTANCE.search(text) else set()

    if follows and _MORE.match(sentence):
        return [(0, len(sentence))], stated(sentence)
    cuts, head, found = [], sentence, set[str]()
    whole = stated(sentence)
    for joint in _JOINT.finditer(sentence):
        # The tail runs to the end of the sentence, or to what a request gives to work on.
        start, rest = joint.start(), sentence[joint.end() :]
        matter = r"[.?!]$" if whole else r": (?=[\"“A-Z])|(?<=allowed,) |[.?!]$"
        tail = re.split(matter, rest, maxsplit=1)[0]
        own = not whole or (_DIRECTIVE.match(sentence[:start]) and not stated(sentence[:start]))
        if own and len(sentence[:start].split()) > 2 and (found := stated(tail)):
            cuts, head = [(start, joint.end() + len(tail))], sentence[:start]
            break
    if whole and found != whole:
        return [(0, len(sentence))], whole
    for kind in kinds & _CLAUSE.keys():
        for clause in _CLAUSE[kind].finditer(head):
            cuts.append(clause.span())
            found = found | {kind}
    return cuts, found


def _example_end(masked: str, at: int) -> int:
    """Where the format example that goes with a sentence removed up to ``at`` ends."""
    start, colon = at, masked[:at].endswith(":")
    while line := re.compile(r"(\s*\n)([^\n]+)").match(masked, at):
        in_block = colon and (at == start or line[1].count("\n") == 1)
        if not _LISTLIKE.match(line[2]) and (not in_block or _DIRECTIVE.match(line[2])):
            break
        at = line.end()
    return at


def without_instruction(prompt: str, instruction_ids: Sequence[str]) -> str | None:
    """The prompt without the text that states the given instructions, or None if not clean.

    None means: nothing could be cut, a listed kind could not be cut whole, or no request is left.
    """
    kinds, masked = set(instruction_ids) & _STATES.keys(), _mask(prompt)
    cuts: list[tuple[int, int]] = []
    found: set[str] = set()
    request = follows = False
    end = 0
    for start, stop in _sentences(masked):
        if start < end:
            continue
        pieces, stated = _cuts(masked[start:stop], kinds, follows)
        found |= stated
        cuts += [(start + a, start + b) for a, b in pieces]
        follows = any(start + b >= stop - 1 for _, b in pieces)
        if follows and (end := _example_end(masked, stop)) > stop:
            cuts.append((stop, end))
        whole = (0, stop - start) in pieces
        request |= not whole and not _DIRECTIVE.match(masked[start:stop])
    text, last = prompt, len(prompt)
    for start, stop in sorted(cuts, reverse=True):
        left, right = text[:start], text[min(stop, last) :]
        last = start
        gaps = left[len(left.rstrip()) :], right[: len(right) - len(right.lstrip())]
        gap = max(gaps, key=lambda white: (white.count("\n"), len(white)))
        inside = left.strip() and right.strip()
        text = left.rstrip() + (gap if inside else "") + right.lstrip()
    left_over = any(_STATES[kind].search(_mask(text)) for kind in kinds)
    if not request or found != kinds or left_over or len(text.split()) < 4 or text.endswith(":"):
        return None
    return text if cuts else None


_WORDINGS = (  # base and part; the short ones where the format needs the room
    ("Here is a short answer, plain and clear.", "Here is the {} part."),
    ("Here it is.", "The {} part."),
)
_IN_LANGUAGE = {
    "de": "Hier ist eine kurze und klare Antwort auf die Anfrage.",
    "hi": "यहाँ आपके प्रश्न का एक छोटा और सरल उत्तर है।",
    "kn": "ನಿಮ್ಮ ಪ್ರಶ್ನೆಗೆ ಒಂದು ಸಣ್ಣ ಉತ್ತರ ಇಲ್ಲಿದೆ.",
    "ko": "다음은 요청하신 내용에 대한 짧고 간단한 답변입니다.",
    "mr": "तुमच्या प्रश्नाचे थोडक्यात उत्तर येथे दिले आहे.",
    "pt": "Aqui está uma resposta curta e clara ao seu pedido.",
    "ru": "Вот короткий и ясный ответ на ваш вопрос.",
    "sw": "Hili hapa ni jibu fupi kwa ombi lako.",
    "vi": "Sau đây là câu trả lời ngắn gọn cho yêu cầu của bạn.",
}


def _nths(count: int, form: str) -> list[str]:
    nths = "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"
    return [form.format(nths[i % len(nths)]) for i in range(count)]


def _note(count: int, form: str) -> str:
    return f" Note {' and '.join(_nths(count, form))}."


def _opened_by(args: _Args, part: str) -> str:
    parts = _nths(args["num_paragraphs"], part)
    parts[args["nth_paragraph"] - 1] = f"{args['first_word'].capitalize()} opens this part."
    return "\n\n".join(parts)


# The body of the text (at most one), what is added to it, and what it is then wrapped in.
_BODY: dict[str, Callable[[_Args, str], str]] = {
    "combination:two_responses": lambda _, __: "Here is one answer.\n******\nHere is another one.",
    "detectable_format:constrained_response": lambda _, __: (
        "My answer is maybe. There are good points on both sides."
    ),
    "detectable_format:multiple_sections": lambda args, part: "\n".join(
        f"{args['section_spliter']} {i}\n{text}"
        for i, text in enumerate(_nths(args["num_sections"], part), 1)
    ),
    "length_constraints:nth_paragraph_first_word": _opened_by,
    "length_constraints:number_paragraphs": lambda args, part: "\n***\n".join(
        _nths(args["num_paragraphs"], part)
    ),
}
_ADDED: dict[str, Callable[[_Args], str]] = {
    "change_case:capital_word_frequency": lambda args: (
        _note(args["capital_frequency"], "{}").upper()
        if args["capital_relation"] == "at least"
        else ""
    ),
    "detectable_format:number_highlighted_sections": lambda args: _note(
        args["num_highlights"], "*{} point*"
    ),
    "detectable_content:number_placeholders": lambda args: _note(
        args["num_placeholders"], "[{} detail]"
    ),
    "keywords:existence": lambda args: f" Key words: {' and '.join(args['keywords'])}.",
    "keywords:frequency": lambda args: (
        f" Key word: {' and '.join([args['keyword']] * args['frequency'])}."
        if args["relation"] == "at least"
        else ""
    ),
    "detectable_format:number_bullet_lists": lambda args: "".join(
        _nths(args["num_bullets"], "\n* {} point")
    ),
    "detectable_content:postscript": lambda args: f"\n{args['postscript_marker']} I hope it helps.",
    "startend:end_checker": lambda args: f"\n{args['end_phrase']}",
}
_WRAPPED: dict[str, Callable[[_Args, str], str]] = {
    "detectable_format:title": lambda _, text: f"<<A Short Title>>\n{text}",
    "combination:repeat_prompt": lambda args, text: f"{args['prompt_to_repeat']}\n{text}",
    "detectable_format:json_format": lambda _, text: json.dumps({"response": text}),
    "startend:quotation": lambda _, text: f'"{text}"',
    "change_case:english_capital": lambda _, text: text.upper(),
    "change_case:english_lowercase": lambda _, text: text.lower(),
}


def _violates(text: str, kind: str, args: _Args) -> bool:
    """Whether a short text already breaks an instruction that sets an upper limit."""
    low = text.lower()
    if kind == "keywords:forbidden_words":
        words = map(re.escape, args["forbidden_words"])
        return re.search(rf"\b(?:{'|'.join(words)})\b", low, _I) is not None
    if kind == "keywords:letter_frequency" and args["let_relation"] == "less than":
        return low.count(args["letter"].lower()) >= args["let_frequency"]
    if kind == "keywords:frequency" and args["relation"] == "less than":
        return low.count(args["keyword"].lower()) >= args["frequency"]
    if kind == "change_case:capital_word_frequency" and args["capital_relation"] == "less than":
        return sum(word.isupper() for word in text.split()) >= args["capital_frequency"]
    return kind == "punctuation:no_comma" and "," in text


def compliant_opening(
    instruction_ids: Sequence[str], kwargs: Sequence[Mapping[str, object]]
) -> str | None:
    """A generic text of 6 to 25 words that visibly follows the instructions.

    None when no kind can be shown in so short a text, or not all demonstrable ones at once.
    """
    asked: list[tuple[str, _Args]] = list(zip(instruction_ids, kwargs, strict=True))
    kinds = set(instruction_ids)
    language = next((str(args["language"]) for kind, args in asked if kind == _IN), None)
    english = kinds & (_BODY.keys() | _ADDED.keys() | _WRAPPED.keys() - {"startend:quotation"})
    if len(kinds & _BODY.keys()) > 1 or (language and (english or language not in _IN_LANGUAGE)):
        return None
    always = bool(kinds & (_BODY.keys() | _WRAPPED.keys() | {_IN, "punctuation:no_comma"}))
    for base, part in _WORDINGS:
        text = _IN_LANGUAGE[language] if language else base
        if "punctuation:no_comma" in kinds:
            text = text.replace(", plain", " that is plain")
        for kind, args in asked:
            text = _BODY[kind](args, part) if kind in _BODY else text
        added = "".join(_ADDED[k](args) for k in _ADDED for kind, args in asked if kind == k)
        text += added
        for wrapped, wrap in _WRAPPED.items():
            text = next((wrap(args, text) for kind, args in asked if kind == wrapped), text)
        words = sum(any(char.isalnum() for char in word) for word in text.split())
        fits = 6 <= words <= 25 and not any(_violates(text, *ask) for ask in asked)
        if fits and (always or added):
            return text
    return None

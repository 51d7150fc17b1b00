"""Texts that begin alike are run together: every token of a common beginning is computed once.

Texts form a trie of token ids. A batch's row holds one or more of its subtrees, and every token
attends to what stands above it in its own text; a beginning that many rows share (a primer, a
few-shot block) is run once and its keys and values are remembered. Beginnings are compared as
tokens: a common text prefix may be tokenised differently at its end.

What a token's neurons do depends on what stands before it alone, so nothing changes but rounding.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .tokens import Encoded

ROW = 256
"""Tokens that a tree may have: attention within a row costs in proportion to its width."""
PACKED = 128
"""Tokens up to which small trees are put side by side in one row."""
BREADTH = 1 / 900
"""What a column more costs every token of a row, beside the token itself: attention against all
else, as measured on a CPU with SmolLM2. It decides how rows are cut, never what comes out."""
WORTH_REMEMBERING = 512
"""Tokens that remembering a beginning must save to be worth a pass of its own."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass: rows of token trees that follow a common beginning.

    A *place* is the flat index of a token, row * width + column. Padding stands on the right.

    Attributes:
        prefix: the remembered beginning of all rows; empty for none.
        ids: int64 [row, column].
        parents: column of the token before, int32 [row, column]; -1 where that is the end of the
            prefix, or nothing.
        positions: position in the text, int64 [row, column].
        real: whether there is a token, [row, column].
        texts: numbers of the texts in this pass.
        places: of each of these, the places of its tokens from position `len(prefix)` on.
    """

    prefix: tuple[int, ...]
    ids: np.ndarray
    parents: np.ndarray
    positions: np.ndarray
    real: np.ndarray
    texts: tuple[int, ...]
    places: tuple[np.ndarray, ...]

    @property
    def is_plain(self) -> bool:
        """Whether every row is one text from its first token on, so that no mask is needed."""
        columns = np.arange(self.ids.shape[1]) - 1
        return not self.prefix and bool(((self.parents == columns) | ~self.real).all())

    @property
    def tokens(self) -> int:
        """Tokens computed, without padding and prefix."""
        return int(self.real.sum())

    def sees(self) -> np.ndarray:
        """What each token attends to, bool [row, column, prefix + column]."""
        rows, width = self.ids.shape
        past = len(self.prefix)
        found = np.zeros((rows, width, past + width), bool)
        every = np.arange(rows)
        for column in range(width):
            parent = self.parents[:, column]
            before = found[every, np.maximum(parent, 0)]
            before[parent < 0] = False
            before[:, :past] = True
            before[:, past + column] = True  # padding too: a softmax over nothing is not a number
            found[:, column] = before
        return found

    def halves(self) -> tuple[Pass, Pass] | None:
        """Two passes that do the same with fewer rows each; None for a single row."""
        rows, width = self.ids.shape
        if rows < 2:
            return None
        cut = rows // 2
        both = []
        for part in (slice(0, cut), slice(cut, rows)):
            first, last = part.start * width, part.stop * width
            inside = [k for k, p in enumerate(self.places) if first <= p[0] < last]
            both.append(
                Pass(
                    self.prefix,
                    self.ids[part],
                    self.parents[part],
                    self.positions[part],
                    self.real[part],
                    tuple(self.texts[k] for k in inside),
                    tuple(self.places[k] - first for k in inside),
                )
            )
        return both[0], both[1]


@dataclass(frozen=True)
class Plan:
    """All passes over a list of texts.

    Attributes:
        passes: those of one prefix stand side by side.
        tokens_given: tokens of all texts.
        tokens_run: tokens that are computed, prefixes included, padding not.
    """

    passes: tuple[Pass, ...]
    tokens_given: int
    tokens_run: int


def plan(
    texts: Sequence[Encoded],
    max_tokens: int = 1024,
    *,
    share: bool = True,
    row: int = ROW,
    last: bool = True,
    remember: bool = True,
) -> Plan:
    """Lay texts out in passes, wide rows first (so that memory fails early).

    Args:
        texts: what to run.
        max_tokens: padded tokens in a pass; a single wider row goes alone.
        share: run common beginnings once; without it every text has its own row.
        row: tokens that a row should hold.
        last: also run each text's last token. Its log-likelihood does not need it.
        remember: give a beginning that many rows share a pass of its own; without it every row runs
            all of its texts' tokens, and needs nothing but itself.
    """
    paths = [text.ids if last else text.ids[:-1] for text in texts]
    if share and not remember:
        trees = _whole_trees(paths, row)
    elif share:
        trees = _trees(texts, paths, row)
    else:
        trees = [_Tree(0, (k,), len(path)) for k, path in enumerate(paths)]
    groups: dict[tuple[int, ...], list[_Tree]] = {}
    for tree in trees:
        groups.setdefault(paths[tree.members[0]][: tree.prefix], []).append(tree)
    passes: list[Pass] = []
    # The longest beginning first; within it the widest rows.
    for prefix, found in sorted(groups.items(), key=lambda g: (-len(g[0]), g[0])):
        passes += _passes(prefix, found, paths, max_tokens, row if share else 0)
    return Plan(
        tuple(passes),
        sum(map(len, paths)),
        sum(p.tokens for p in passes) + sum(len(prefix) for prefix in groups),
    )


def plan_groups(
    texts: Sequence[Encoded],
    groups: Sequence[Sequence[int]],
    max_tokens: int = 1024,
    *,
    share: bool = True,
) -> tuple[Pass, ...]:
    """Lay groups of texts out so that beginnings are shared within a group and never between two:
    what is summed over a group's tokens then belongs to that group alone.

    Args:
        texts: what to run.
        groups: numbers of the texts in each; every text in one group.
        max_tokens: padded tokens in a pass; a single wider row goes alone.
        share: without it every text has its own row, and a group may lie in several passes.
    """
    paths = [text.ids for text in texts]
    trees = []
    for group in groups:
        members = tuple(sorted(group, key=lambda k: paths[k]))
        if not share:
            trees += [_Tree(0, (k,), len(paths[k])) for k in members]
            continue
        shared = sum(common(paths[a], paths[b]) for a, b in itertools.pairwise(members))
        trees.append(_Tree(0, members, sum(len(paths[k]) for k in members) - shared))
    return tuple(_passes((), trees, paths, max_tokens, ROW if share else 0))


@dataclass(frozen=True)
class _Tree:
    """Texts that stand in one row: `prefix` tokens are remembered, `size` are in the row."""

    prefix: int
    members: tuple[int, ...]
    size: int


def _trees(texts: Sequence[Encoded], paths: Sequence[tuple[int, ...]], row: int) -> list[_Tree]:
    """Cut the trie into subtrees of at most `row` tokens, and say what each one remembers."""
    if not paths:
        return []
    order = sorted(range(len(paths)), key=lambda k: paths[k])
    lengths = [len(paths[k]) for k in order]
    shares = [0] + [common(paths[a], paths[b]) for a, b in itertools.pairwise(order)]
    # A beginning must end before the token that predicts an answer's first.
    latest = [max(texts[k].start - 1, 0) for k in order]
    # Inner nodes whose subtree is too large for a row: (length of the beginning, parent node).
    nodes: list[tuple[int, int]] = []
    leaves: list[tuple[int, int, int]] = []  # first, end, parent node
    todo = [(0, len(order), -1)]
    while todo:
        first, end, parent = todo.pop()
        size = lengths[first] + sum(lengths[k] - shares[k] for k in range(first + 1, end))
        shared = min(shares[first + 1 : end], default=lengths[first])
        above = nodes[parent][0] if parent >= 0 else 0
        if size - above <= row or shared == lengths[first] == max(lengths[first:end]):
            leaves.append((first, end, parent))
            continue
        nodes.append((min(shared, *latest[first:end]), parent))
        cuts = [first, *(k for k in range(first + 1, end) if shares[k] == shared), end]
        todo += [(a, b, len(nodes) - 1) for a, b in itertools.pairwise(cuts)]
    below = [0] * len(nodes)
    for _, _, parent in leaves:
        while parent >= 0:
            below[parent] += 1
            parent = nodes[parent][1]
    # What to remember under each node: its own beginning if that saves enough beyond what is
    # remembered above it, taking every tree for a row of its own.
    remembered: list[int] = []
    for (length, parent), trees in zip(nodes, below, strict=True):
        above = remembered[parent] if parent >= 0 else 0
        worth = (length - above) * trees - length >= WORTH_REMEMBERING
        remembered.append(length if worth else above)
    found = []
    for first, end, node in sorted(leaves):
        prefix = remembered[node] if node >= 0 else 0
        for a, b in _cut(first, end, prefix, lengths, shares)[1]:
            size = lengths[a] + sum(lengths[k] - shares[k] for k in range(a + 1, b))
            # Copies of one text take no more tokens, but what is kept of each takes room.
            for begin in range(a, b, row) if size == lengths[a] else (a,):
                members = order[begin : min(begin + row, b) if size == lengths[a] else b]
                found.append(_Tree(prefix, tuple(members), size - prefix))
    return found


def _cut(
    first: int, end: int, prefix: int, lengths: Sequence[int], shares: Sequence[int]
) -> tuple[float, list[tuple[int, int]]]:
    """Cut a tree further where several narrow rows cost less than a wide one, though they run
    their common beginning several times. Returns the cost and the parts."""
    size = lengths[first] + sum(lengths[k] - shares[k] for k in range(first + 1, end)) - prefix
    whole = size * (1 + BREADTH * size)
    shared = min(shares[first + 1 : end], default=-1)
    if shared < 0 or shared == max(lengths[first:end]) or size <= PACKED // 2:
        return whole, [(first, end)]
    cuts = [first, *(k for k in range(first + 1, end) if shares[k] == shared), end]
    parts = [_cut(a, b, prefix, lengths, shares) for a, b in itertools.pairwise(cuts)]
    cost = sum(part[0] for part in parts)
    if cost < whole:
        return cost, [piece for part in parts for piece in part[1]]
    return whole, [(first, end)]


def _whole_trees(paths: Sequence[tuple[int, ...]], row: int) -> list[_Tree]:
    """Trees that begin with the texts' first tokens, each with `row` tokens of its own, or as many
    as its texts share where that is more: so a long beginning at most doubles the work."""
    if not paths:
        return []
    order = sorted(range(len(paths)), key=lambda k: paths[k])
    found = [_Tree(0, (order[0],), len(paths[order[0]]))]
    for before, k in itertools.pairwise(order):
        shares, last = common(paths[before], paths[k]), found[-1]
        size = last.size + len(paths[k]) - shares
        if size <= shares + max(row, shares):
            found[-1] = _Tree(0, (*last.members, k), size)
        else:
            found.append(_Tree(0, (k,), len(paths[k])))
    return found


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    n = min(len(a), len(b))
    return next((k for k in range(n) if a[k] != b[k]), n)


def _passes(
    prefix: tuple[int, ...],
    trees: Sequence[_Tree],
    paths: Sequence[tuple[int, ...]],
    max_tokens: int,
    row: int,
) -> Iterator[Pass]:
    """Trees that follow one prefix, the widest rows first."""
    rows = _rows(trees, row)
    begin = 0
    while begin < len(rows):
        width = sum(tree.size for tree in rows[begin])
        end = min(len(rows), begin + max(1, max_tokens // width))
        yield _lay_out(prefix, rows[begin:end], width, paths)
        begin = end


def _rows(trees: Sequence[_Tree], row: int) -> list[list[_Tree]]:
    """Small trees side by side in rows of about equal width: the largest first, each where it
    fits best."""
    ordered = sorted(trees, key=lambda tree: (-tree.size, tree.members))
    width = min(row, PACKED)
    rows: list[list[_Tree]] = []
    room: list[tuple[int, int]] = []  # what is left in a row, and its number; sorted
    for tree in ordered:
        place = bisect_left(room, (tree.size, 0))
        if place == len(room):
            rows.append([tree])
            if width > tree.size:
                insort(room, (width - tree.size, len(rows) - 1))
        else:
            left, number = room.pop(place)
            rows[number].append(tree)
            insort(room, (left - tree.size, number))
    return sorted(rows, key=lambda trees: -sum(tree.size for tree in trees))


def _lay_out(
    prefix: tuple[int, ...],
    rows: Sequence[Sequence[_Tree]],
    width: int,
    paths: Sequence[tuple[int, ...]],
) -> Pass:
    shape = len(rows), width
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    parents, real = np.full(shape, -1, np.int32), np.zeros(shape, bool)
    texts: list[int] = []
    places: list[np.ndarray] = []
    for number, trees in enumerate(rows):
        column = 0
        for tree in trees:
            before: list[int] = []  # columns of the text before, in depth order
            path_before: tuple[int, ...] = ()
            for member in tree.members:  # sorted, so that neighbours share the most
                path = paths[member]
                kept = max(common(path_before, path) - tree.prefix, 0)
                columns = before[:kept]
                for position in range(tree.prefix + kept, len(path)):
                    ids[number, column] = path[position]
                    positions[number, column] = position
                    parents[number, column] = columns[-1] if columns else -1
                    real[number, column] = True
                    columns.append(column)
                    column += 1
                texts.append(member)
                places.append(number * width + np.array(columns, np.int64))
                before, path_before = columns, path
    return Pass(prefix, ids, parents, positions, real, tuple(texts), tuple(places))

"""Stop tokens and stop strings, however the text is cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import InvalidInputError
from model.stopping import StopCondition


class Pieces:
    """Tokens whose texts are given; what is left at the end comes out with the flush."""

    def __init__(self, texts: Sequence[str], left: str = "") -> None:
        self.texts = texts
        self.left = left

    def push(self, token: int) -> str:
        return self.texts[token]

    def flush(self) -> str:
        left, self.left = self.left, ""
        return left


def run(
    texts: Sequence[str], condition: StopCondition, limit: int = 1000, left: str = ""
) -> tuple[list[str], str | None]:
    watch = condition.watch(Pieces(texts, left), limit)
    shown = []
    for token in range(len(texts)):
        shown.append(watch.push(token))
        if watch.finish_reason:
            break
    return shown, watch.finish_reason


def test_length() -> None:
    assert run(["a", "b", "c"], StopCondition(), limit=2) == (["a", "b"], "length")
    assert run(["a", "b"], StopCondition(), limit=3) == (["a", "b"], None)


def test_a_stop_token_gives_no_text() -> None:
    assert run(["a", "</s>", "c"], StopCondition([1])) == (["a", ""], "stop")
    assert run(["a", "</s>"], StopCondition([1]), limit=2) == (["a", ""], "stop")


def test_a_stop_string_across_tokens_is_held_back_and_cut() -> None:
    condition = StopCondition(strings=["\n\n"])
    assert run(["a\n", "b\n", "\nc"], condition) == (["a", "\nb", ""], "stop")
    assert run(["one\n\ntwo"], condition) == (["one"], "stop")
    assert run(["xEN", "D"], StopCondition(strings="END")) == (["x", ""], "stop")


def test_what_was_held_back_in_vain_is_shown() -> None:
    condition = StopCondition(strings=["abcd"])
    assert run(["ab", "ab", "c", "x"], condition) == (["", "ab", "", "abcx"], None)
    assert run(["ab", "c"], condition, limit=2) == (["", "abc"], "length")
    assert run(["ab", "</s>"], StopCondition([1], ["abcd"])) == (["", "ab"], "stop")


def test_the_string_that_ends_first_cuts() -> None:
    condition = StopCondition(strings=["abcdef", "cd", "bcd"])
    assert run(["abcdef"], condition) == (["a"], "stop")
    assert run(list("abcdef"), condition) == (["", "", "", "a"], "stop")


def test_text_that_was_open_may_still_be_a_stop_string() -> None:
    condition = StopCondition([1], ["\ufffd"])
    assert run(["a", "x"], condition, left="b\ufffdc") == (["a", "b"], "stop")
    assert run(["a"], condition, limit=1, left="\ufffd") == (["a"], "stop")
    assert run(["a"], condition, limit=1, left="!") == (["a!"], "length")


LETTERS = st.text(alphabet="ab", max_size=12)


@given(
    text=LETTERS,
    strings=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    cuts=st.sets(st.integers(0, 12)),
    left=st.text(alphabet="ab", max_size=3),
)
def test_any_cut_into_tokens_gives_the_same(
    text: str, strings: list[str], cuts: set[int], left: str
) -> None:
    """Defined by letters: the text ends where the first stop string is complete."""
    whole = text + left
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(s) for s in strings)]
    expected, reason = whole, "length"
    if ends:
        before = whole[: ends[0]]
        longest = max((s for s in strings if before.endswith(s)), key=len)
        expected, reason = before[: -len(longest)], "stop"
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(text)), len(text)]
    texts = [text[a:b] for a, b in pairwise(edges)]
    shown, found = run(texts, StopCondition(strings=strings), limit=len(texts), left=left)
    assert ("".join(shown), found) == (expected, reason)
    # what is shown is never taken back, nor held back without need
    for count in range(1, len(shown)):
        seen, given_out = "".join(texts[:count]), "".join(shown[:count])
        assert expected.startswith(given_out)
        held = seen[len(given_out) :]
        assert not held or any(s.startswith(held) for s in strings)


def test_no_token_after_the_end() -> None:
    watch = StopCondition([0]).watch(Pieces(["a"]), 5)
    watch.push(0)
    with pytest.raises(InvalidInputError, match=r"has ended \(stop\), got 0"):
        watch.push(0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token_ids": [-1]}, "stop token id is -1"),
        ({"token_ids": ["2"]}, "stop token id is '2'"),
        ({"strings": [""]}, "stop string is '', expected a non-empty text"),
        ({"strings": [3]}, "stop string is 3"),
        ({"strings": ""}, "stop string is ''"),
    ],
)
def test_conditions_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        StopCondition(**options)


@pytest.mark.parametrize("limit", [0, -1, 1.5, None])
def test_limits_are_checked(limit: Any) -> None:
    with pytest.raises(InvalidInputError, match="max_new_tokens is"):
        StopCondition().watch(Pieces([]), limit)

"""Text in and out, with the bundled model: prompts, stop strings, streaming, perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from kernels.errors import InvalidInputError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.perplexity import perplexity, windows
from tests.pipeline.building import footprint, parity_pipeline

PROMPTS = ["def add(a, b):\n    ", "import ", "class Point:\n"]


@pytest.fixture(scope="module")
def pipeline() -> Iterator[LlamaPipeline]:
    with LlamaPipeline.from_pretrained(stages=2, threads=1, max_seq_len=128) as pipeline:
        yield pipeline
        assert all(lengths == {} for lengths, _ in footprint(pipeline))


def test_text_becomes_text(pipeline: LlamaPipeline) -> None:
    result = pipeline.generate(PROMPTS, max_new_tokens=12)
    tokenizer = pipeline.tokenizer
    assert tokenizer is not None
    for prompt, done in zip(PROMPTS, result.completions, strict=True):
        assert done.prompt == prompt
        assert done.text == tokenizer.decode(done.tokens)
        assert done.text.strip()


def test_a_prompt_of_token_ids_gives_the_same_text(pipeline: LlamaPipeline) -> None:
    assert pipeline.tokenizer is not None
    ids = pipeline.tokenizer.encode(PROMPTS[0])
    [by_text] = pipeline.generate(PROMPTS[0], max_new_tokens=8).completions
    [by_ids] = pipeline.generate(ids, max_new_tokens=8).completions
    assert (by_ids.text, by_ids.tokens, by_ids.prompt) == (by_text.text, by_text.tokens, ids)


def test_special_tokens_can_be_left_out(pipeline: LlamaPipeline) -> None:
    assert pipeline.tokenizer is not None
    plain = pipeline.tokenizer.encode(PROMPTS[1], add_special_tokens=False)
    [done] = pipeline.generate(PROMPTS[1], max_new_tokens=6, add_special_tokens=False).completions
    assert done.tokens == pipeline.generate(plain, max_new_tokens=6).completions[0].tokens


def test_streamed_text_is_the_text(pipeline: LlamaPipeline) -> None:
    with pipeline.stream(PROMPTS, max_new_tokens=10) as stream:
        events = list(stream)
        result = stream.result()
    for done in result.completions:
        mine = [event for event in events if event.index == done.index]
        assert "".join(event.text for event in mine) == done.text
        assert [event.token for event in mine] == done.tokens
        assert [event.finish_reason for event in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == done.finish_reason


def test_stop_strings_end_a_completion_and_are_left_out(pipeline: LlamaPipeline) -> None:
    whole = pipeline.generate(PROMPTS[0], max_new_tokens=16).completions[0].text
    stop = whole[5:8]  # across the borders of tokens, wherever these are
    with pipeline.stream(PROMPTS[0], max_new_tokens=16, stop=[stop, "never this"]) as stream:
        shown = "".join(event.text for event in stream)
        [done] = stream.result().completions
    assert done.finish_reason == "stop"
    assert done.text == shown == whole[: whole.index(stop)]


def test_stop_tokens_are_the_models_unless_told(pipeline: LlamaPipeline) -> None:
    [free] = pipeline.generate(PROMPTS[1], max_new_tokens=6).completions
    [stopped] = pipeline.generate(
        PROMPTS[1], max_new_tokens=6, stop_token_ids=[free.tokens[2]]
    ).completions
    assert stopped.finish_reason == "stop"
    assert stopped.tokens == free.tokens[: free.tokens.index(free.tokens[2]) + 1]
    assert pipeline.tokenizer is not None
    assert stopped.text == pipeline.tokenizer.decode(stopped.tokens[:-1])


def test_perplexity_predicts_every_token_once(pipeline: LlamaPipeline) -> None:
    tokenizer = pipeline.tokenizer
    assert tokenizer is not None
    assert tokenizer.bos_token_id is not None
    text = "def f(x):\n    return x + 1\n"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    result = perplexity(pipeline, text, window=5)
    nll = 0.0
    for start in range(0, len(tokens), 5):
        context = [tokenizer.bos_token_id]
        for token in tokens[start : start + 5]:
            logits = pipeline.score(context)[-1].double()
            nll -= float(logits.log_softmax(0)[token])
            context.append(token)
    assert result.tokens == len(tokens)
    seen: list[tuple[int, int]] = []
    perplexity(pipeline, text, window=5, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (5, len(tokens))
    assert seen[-1] == (len(tokens), len(tokens))
    assert result.nll_per_token == pytest.approx(nll / len(tokens), rel=1e-4)
    assert result.perplexity == pytest.approx(math.exp(result.nll_per_token))
    assert perplexity(pipeline, tokens, window=5) == result
    assert perplexity(pipeline, [tokenizer.bos_token_id, *tokens], window=5) == result
    assert set(result.json()) == {"perplexity", "nll_per_token", "tokens"}
    seen: list[tuple[int, int]] = []
    perplexity(pipeline, text, window=5, progress=lambda *counts: seen.append(counts))
    total = len(tokens)
    assert seen == [(min(done, total), total) for done in range(5, total + 5, 5)]


@pytest.mark.parametrize("bos", [None, 99])
@pytest.mark.parametrize("window", [1, 2, 3, 10, 11])
def test_windows_cover_a_text_without_overlap(bos: int | None, window: int) -> None:
    tokens = list(range(10))
    pairs = list(windows(tokens, bos, window))
    predicted = [token for _, part in pairs for token in part]
    assert predicted == (tokens if bos is not None else tokens[1:])
    for fed, part in pairs:
        assert len(fed) == len(part) <= window
        if bos is not None:
            assert [bos, *part[:-1]] == fed
        else:
            assert [token - 1 for token in part] == fed


def test_perplexity_needs_something_to_predict_and_a_window_that_fits() -> None:
    with parity_pipeline() as pipeline:
        for text in ([], [1]):
            with pytest.raises(InvalidInputError, match="nothing to predict; expected at least 2"):
                perplexity(pipeline, text)
        for window in (0, 17):
            with pytest.raises(InvalidInputError, match=f"window is {window}; expected 1 to 16"):
                perplexity(pipeline, [1, 2], window)
        with pytest.raises(InvalidInputError, match="text needs a tokenizer"):
            perplexity(pipeline, "text")
        with pytest.raises(InvalidInputError, match="token id 7 at place 1 of the text"):
            perplexity(pipeline, [1, 7])


def test_a_uniform_model_has_its_vocabulary_as_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    with parity_pipeline() as pipeline:
        monkeypatch.setattr(
            LlamaPipeline, "score", lambda self, tokens: torch.zeros(len(list(tokens)), 7)
        )
        result = perplexity(pipeline, [1, 2, 3, 4, 5, 6], window=4)
    assert result.perplexity == pytest.approx(7)
    assert result.tokens == 5

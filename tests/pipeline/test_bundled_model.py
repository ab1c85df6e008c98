"""The model in the package: its size and shape, its text, and what int8 KV costs it."""

from __future__ import annotations

import json
import math
import re

from kernels.layout import KVLayout
from model import bundled_model_path
from model.config import LlamaConfig
from model.sampling import SamplingParams
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.perplexity import perplexity

FOLDER = bundled_model_path()
HELDOUT = (FOLDER / "heldout.txt").read_text()
TRAINING = json.loads((FOLDER / "training.json").read_text())


def heldout_perplexity(kv_dtype: str, text: str) -> float:
    with LlamaPipeline.from_pretrained(stages=2, mode="batch", kv_dtype=kv_dtype) as pipe:
        return perplexity(pipe, text, window=511).perplexity


def test_size_and_shape() -> None:
    config = LlamaConfig.from_json(FOLDER)
    assert config.head_dim == 64
    assert config.num_key_value_heads < config.num_attention_heads
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    assert TRAINING["complete"] is True


def test_int8_cache_costs_little_and_perplexity_is_the_recorded_one() -> None:
    fp16 = heldout_perplexity("fp16", HELDOUT)
    int8 = heldout_perplexity("int8", HELDOUT)
    assert int8 != fp16
    assert abs(int8 / fp16 - 1) < 0.005
    # Recorded in float32 by the training script; here in bfloat16, as the weights are stored.
    assert math.isclose(fp16, TRAINING["held_out"]["perplexity"], rel_tol=0.01)


def test_int8_pools_are_half_as_big() -> None:
    sizes = {
        dtype: KVLayout(dtype, 16, num_kv_heads=2, head_dim=64).allocate(8).nbytes
        for dtype in ("fp16", "int8")
    }
    assert sizes["int8"] <= 0.54 * sizes["fp16"]


def test_text_is_python_like_and_the_same_in_both_modes() -> None:
    prompts = (FOLDER / "prompts.txt").read_text().splitlines()
    sampling = SamplingParams(temperature=0.6, seed=0)
    texts = {}
    for mode in ("batch", "overlapped"):
        with LlamaPipeline.from_pretrained(stages=2, mode=mode, kv_dtype="int8", threads=1) as pipe:
            done = pipe.generate(prompts, max_new_tokens=40, sampling=sampling).completions
            texts[mode] = [completion.text for completion in done]
            cut = pipe.cache_metrics_snapshot()["pipeline_decode"]["overlapped_calls"]
            assert (cut > 0) == (mode == "overlapped")
    assert texts["batch"] == texts["overlapped"]
    keywords = {"return", "raise", "def", "class", "import", "if", "for", "in", "self", "try"}
    written = [set(re.findall(r"[a-z]+", text)) for text in texts["batch"]]
    assert sum(bool(words & keywords) for words in written) >= 0.75 * len(prompts)

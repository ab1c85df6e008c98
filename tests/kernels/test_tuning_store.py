"""Stores of tuned configurations: what is used, and what is passed over."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels import tuning
from kernels.target import Target, assume
from kernels.tuning import Config, Tunable

GPU = Target("A GPU", "sm_90", 132)
DEFAULT = Config({"BLOCK_N": 64}, 4, 3)
KEY = (128, "bfloat16")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    clear()
    path = tuning.local_store(GPU)
    path.parent.mkdir()
    yield path
    clear()


def clear() -> None:
    tuning._tuned.cache_clear()
    tuning._chosen.cache_clear()


def chosen() -> Config:
    with assume(GPU):
        return Tunable("kernel", lambda key, target: DEFAULT).config(KEY, torch.device("cpu"))


def test_what_is_kept_is_used_at_once() -> None:
    assert chosen() == DEFAULT
    tuned = Config({"BLOCK_N": 128}, 8, 4)
    tuning.keep(GPU, {tuning.entry_name("kernel", KEY): tuned})
    assert chosen() == tuned


@pytest.mark.parametrize("constants", [{}, {"BLOCK_M": 128}, {"BLOCK_N": 128, "SPLIT_K": 2}])
def test_entries_of_a_kernel_since_changed_are_passed_over(constants: dict[str, int]) -> None:
    tuning.keep(GPU, {tuning.entry_name("kernel", KEY): Config(constants, 8, 4)})
    assert chosen() == DEFAULT


NO_STORES = [
    b"",
    b"{",
    b"\xff",
    b"[]",
    b'{"kernel(128, bfloat16)": 3}',
    b'{"kernel(128, bfloat16)": {"BLOCK_N": 128}}',
    b'{"kernel(128, bfloat16)": {"BLOCK_N": "128", "num_warps": 8, "num_stages": 4}}',
]


@pytest.mark.parametrize("content", NO_STORES)
def test_a_file_that_is_no_store_is_ignored_by_name(store: Path, content: bytes) -> None:
    store.write_bytes(content)
    with pytest.warns(UserWarning, match="is ignored: not tuned configurations") as warned:
        assert chosen() == DEFAULT
    assert str(store) in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() == DEFAULT  # once is enough


def test_keeping_replaces_a_file_that_is_no_store(store: Path) -> None:
    store.write_text("{")
    name, tuned = tuning.entry_name("kernel", KEY), Config({"BLOCK_N": 128}, 8, 4)
    with pytest.warns(UserWarning, match="is ignored"):
        tuning.keep(GPU, {name: tuned})
    assert json.loads(store.read_text()) == {name: tuned.meta}
    assert chosen() == tuned

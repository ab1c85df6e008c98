"""What is wrong with a kernel is found, named, and does not hide the others; results are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernels import get_op
from kernels.aot import Compiled, Request, compile_matrix, matrix, variants
from kernels.launch import Launch
from tests.pipeline.cli.running import document, invoke

BAD = Path(__file__).with_name("bad_kernels.py")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path / "cache"))


def compiled(name: str, file: Path = BAD, archs: tuple[str, ...] = ("sm_90",)) -> list[Compiled]:
    return compile_matrix(Request(("rms_norm",), archs, f"{file}:{name}"), processes=1)


def test_a_spilling_kernel_is_red() -> None:
    (row,) = compiled("spilling")
    assert not row.ok
    assert row.problems == [f"spills {row.spills} bytes a thread"]


def test_too_much_shared_memory_is_red() -> None:
    (row,) = compiled("hoarding")
    assert not row.ok
    assert (row.shared_bytes or 0) > 227 * 1024
    assert f"{row.shared_bytes} bytes of shared memory, of {227 * 1024}" in row.problems


def test_others_go_on_beside_an_error() -> None:
    mistyped, fine = compiled("mistyped")
    assert (mistyped.kernel, fine.kernel) == ("mistyped_kernel", "fine_kernel")
    assert "no_such_name is not defined" in (mistyped.error or "")
    assert fine.ok
    assert not mistyped.ok
    rows = compiled("raising")
    assert {row.error for row in rows} == {"ValueError: no such luck"}
    assert len(rows) == len(get_op("rms_norm").aot)


def test_an_own_function_that_launches_nothing_is_red() -> None:
    rows = compiled("silent", archs=("sm_80", "sm_90"))
    assert [row.arch for row in rows] == ["sm_80", "sm_90"]
    assert {row.error for row in rows} == {"launched nothing through kernels.launch"}
    result = invoke("aot", "rms_norm", "--arch", "sm_90", "--impl", f"{BAD}:silent")
    assert result.exit_code == 1
    assert "launched nothing through kernels.launch" in " ".join(result.stdout.split())


def test_a_kernel_is_compiled_once_for_all_cases_of_an_architecture() -> None:
    rows = compiled("fine", archs=("sm_80", "sm_90", "sm_100"))
    assert [row.arch for row in rows] == ["sm_80", "sm_90", "sm_100"]
    assert all(row.ok for row in rows)


def test_results_are_kept_until_the_source_changes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(BAD.read_text())
    assert [row.cached for row in compiled("fine", file)] == [False]
    assert [row.cached for row in compiled("fine", file)] == [True]
    for _ in range(2):  # errors are not kept
        assert [row.cached for row in compiled("mistyped", file)] == [False, True]
    file.write_text(BAD.read_text().replace("* 2.0", "* 3.0"))
    assert [row.cached for row in compiled("fine", file)] == [False]


def test_results_are_kept_for_one_way_of_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(SimpleNamespace(params=[], cache_key="source"), (1,), (), {})
    key = variants.key_of(launch, "sm_90")
    assert key == variants.key_of(launch, "sm_90")
    monkeypatch.setattr(variants, "_EXTRACTION", -1)
    assert variants.key_of(launch, "sm_90") != key


@pytest.mark.parametrize(("cores", "count"), [(1, 2), (4, 4), (64, 8)])
def test_as_many_processes_as_cores(
    cores: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crew(module: str, count: int, *rest: Any, **options: Any) -> None:
        raise InterruptedError(count)

    monkeypatch.setattr(matrix, "usable_cores", lambda: cores)
    monkeypatch.setattr(matrix, "Crew", crew)
    with pytest.raises(InterruptedError, match=f"^{count}$"):
        compile_matrix(Request(("rms_norm",), ("sm_90",)))


def test_command() -> None:
    options = ("aot", "rms_norm", "--arch", "sm_90", "--impl")
    found = document(invoke(*options, f"{BAD}:fine", "--json"))
    assert found["ok"]
    (row,) = found["kernels"]
    assert (row["op"], row["arch"], row["kernel"]) == ("rms_norm", "sm_90", "fine_kernel")
    assert 0 < row["registers"] <= 255
    assert (row["spills"], row["ok"], row["cached"]) == (0, True, False)
    result = invoke(*options, f"{BAD}:spilling")
    assert result.exit_code == 1
    assert "1 of 1 kernel red: rms_norm" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_code_of_a_kernel() -> None:
    options = ("aot", "rms_norm", "--impl", f"{BAD}:fine")
    result = invoke(*options, "--ptx", "--arch", "sm_80")
    assert result.exit_code == 0
    assert ".target sm_80" in result.stdout
    shown = document(invoke(*options, "--ttgir", "--sass", "--json"))["code"]
    assert [part["kind"] for part in shown] == ["ttgir", "sass"]
    assert "tt.func public @_fine_kernel" in shown[0]["text"]
    assert "Function : _fine_kernel" in shown[1]["text"]
    result = invoke(*options, "--ptx", "--kernel", "other")
    assert result.exit_code == 2
    assert "no kernel is called 'other'; there are fine_kernel" in result.stderr

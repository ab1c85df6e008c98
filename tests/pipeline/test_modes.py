"""Names of modes, bridges and transports, and what is refused."""

from __future__ import annotations

import json

import pytest

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import (
    LlamaPipelineMode,
    StageBridge,
    Transport,
    parse_bridge,
    parse_local_bridge,
)


@pytest.mark.parametrize("text", ["batch", "BATCH", " Batch\t"])
def test_parsing_ignores_case_and_space(text: str) -> None:
    assert LlamaPipelineMode.parse(text) is LlamaPipelineMode.BATCH


@pytest.mark.parametrize("text", ["", "warp", "batch overlapped"])
def test_parsing_quotes_what_it_does_not_know(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        LlamaPipelineMode.parse(text)
    assert str(caught.value) == (
        f'layer_split_pipeline_mode must be batch, overlapped, continuous or auto, got "{text}"'
    )


def test_a_mode_that_is_no_text_is_named() -> None:
    for wrong in (3, b"batch"):
        with pytest.raises(InvalidInputError, match=rf"continuous or auto, got {wrong!r}"):
            LlamaPipelineMode.parse(wrong)
    with pytest.raises(InvalidInputError, match="continuous or auto, got 3"):
        LlamaPipeline.from_pretrained(mode=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("stages", "mode"), [(1, "batch"), (2, "overlapped"), (5, "batch")])
def test_default_mode_depends_on_the_number_of_stages(stages: int, mode: str) -> None:
    assert LlamaPipelineMode.default_for_stage_count(stages) == mode


def test_names_are_plain_strings() -> None:
    names = [LlamaPipelineMode.OVERLAPPED, StageBridge.CUDA_DEVICE_STAGED]
    assert json.dumps([*names, Transport.HOST_HIDDEN_BRIDGE]) == (
        '["overlapped", "cuda_device_staged", "host-hidden-bridge"]'
    )
    assert f"{LlamaPipelineMode.BATCH}" == "batch"


@pytest.mark.parametrize("bridge", StageBridge)
def test_every_bridge_has_a_transport_of_its_name(bridge: StageBridge) -> None:
    transport = Transport.of(bridge)
    assert transport == f"{bridge.value.replace('_', '-')}-hidden-bridge"
    assert transport.stage_bridge is bridge


@pytest.mark.parametrize("name", ["host", "cuda_peer", "cuda_device_staged"])
def test_bridges_within_a_process_are_known(name: str) -> None:
    assert parse_local_bridge(name) is parse_bridge(name) is StageBridge(name)


def test_a_bridge_that_cannot_be_had_says_why() -> None:
    what = "bridge 'distributed' needs the processes of torchrun"
    with pytest.raises(UnsupportedError, match=what):
        parse_local_bridge("distributed")


def test_auto_is_left_to_the_devices() -> None:
    assert parse_bridge("auto") is parse_local_bridge("auto") is None


def test_an_unknown_bridge_names_those_there_are() -> None:
    with pytest.raises(InvalidInputError, match=r"bridge is 'rope'.*'host', 'cuda_peer'"):
        parse_local_bridge("rope")

"""Checkpoints are read as transformers wrote them; everything that is wrong with one is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from kernels.errors import CheckpointError, InvalidInputError, LamellaError, UnsupportedError
from model import checkpoint as checkpoint_module
from model.checkpoint import Checkpoint
from model.weights import WeightSource, stage_names, stage_nbytes

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 33,
    "max_position_embeddings": 64,
}
INDEX = "model.safetensors.index.json"
Q = "model.layers.1.self_attn.q_proj.weight"


def write(folder: Path, family: str = "Llama", shard: str = "5GB", **options: Any) -> Path:
    torch.manual_seed(0)
    dtype = options.pop("dtype", torch.float32)
    config = getattr(transformers, f"{family}Config")(**SIZES, **options)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    for name, value in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # so that no two are alike
            torch.nn.init.normal_(value)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: value.clone() for name, value in tensors.items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **fields: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **fields}))


@pytest.mark.parametrize("shard", ["5GB", "3KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 6}),
        ("Mistral", {"sliding_window": 8}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    ],
)
def test_reads_what_transformers_wrote(
    family: str, options: dict[str, Any], dtype: torch.dtype, shard: str, tmp_path: Path
) -> None:
    write(tmp_path, family, shard, dtype=dtype, **options)
    assert (tmp_path / INDEX).exists() == (shard == "3KB")
    stored: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        stored |= load_file(file)
    source: WeightSource = Checkpoint.open(tmp_path)
    assert source.dtype == dtype
    used = 0
    for kind, name in stage_names(source, range(2), embed=True, head=True):
        if kind == "tensor":
            assert torch.equal(source.tensor(name), stored[name])
            used += stored[name].nbytes
            assert source.nbytes(name) == stored[name].nbytes
            continue
        prefix, _, last = name.rpartition(".")
        parts = {
            "qkv_proj": ["q_proj", "k_proj", "v_proj"],
            "gate_up_proj": ["gate_proj", "up_proj"],
        }.get(last, [last])
        names = [f"{prefix}.{part}" if prefix else part for part in parts]
        tied = name == "lm_head" and bool(options.get("tie_word_embeddings"))
        if tied:
            names = ["model.embed_tokens"]
        weight, bias = source.linear(name)
        assert torch.equal(weight, torch.cat([stored[f"{part}.weight"] for part in names]))
        biases = [stored[f"{part}.bias"] for part in names if f"{part}.bias" in stored]
        assert (bias is None) == (not biases)
        if bias is not None:
            assert torch.equal(bias, torch.cat(biases))
        size = weight.nbytes + (0 if bias is None else bias.nbytes)
        assert source.nbytes(name) == size
        used += size
    assert source.has("lm_head.weight") == (not options.get("tie_word_embeddings"))
    # what the stage names is all there is in the files, and each tensor once
    assert used == sum(value.nbytes for value in stored.values())
    assert stage_nbytes(source, range(2), embed=True, head=True) == used


def test_an_absent_head_is_the_embedding_unless_the_configuration_says_no(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight"):
        Checkpoint.open(folder)
    raw = json.loads((folder / "config.json").read_text())
    del raw["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(raw))
    source = Checkpoint.open(folder)
    assert not source.has("lm_head.weight")
    assert torch.equal(source.linear("lm_head").weight, source.tensor("model.embed_tokens.weight"))
    assert source.nbytes("lm_head") == source.nbytes("model.embed_tokens.weight")


def test_a_head_of_its_own_is_used_even_if_the_configuration_ties(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    source = Checkpoint.open(folder)
    stored = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(source.linear("lm_head").weight, stored)


def test_only_what_is_asked_for_is_read(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][0] = torch.nan

    change(folder, spoil)
    source = Checkpoint.open(folder)
    source.linear("model.layers.0.mlp.gate_up_proj")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has 1 or more values"):
        source.tensor("model.norm.weight")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_place_is_searched_for_values_that_are_not_finite(
    dtype: torch.dtype, bad: float, folder: Path
) -> None:
    for index in [0, 1, 7, 15, 100, 16 * 16 - 1]:

        def spoil(tensors: dict[str, torch.Tensor], index: int = index) -> None:
            tensors.update({name: value.to(dtype) for name, value in tensors.items()})
            for name, value in tensors.items():  # finite, though their sum is not
                tensors[name] = torch.full_like(value, torch.finfo(dtype).max)
            tensors[Q].view(-1)[index] = bad

        change(folder, spoil)
        source = Checkpoint.open(folder)
        source.linear("model.layers.0.self_attn.qkv_proj")
        with pytest.raises(CheckpointError, match=f"{re.escape(Q)} has 1 or more"):
            source.linear("model.layers.1.self_attn.qkv_proj")


def test_tensors_are_read_in_pieces(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Checkpoint.open(original)
    whole = source.linear("model.layers.1.mlp.gate_up_proj").weight
    for piece in (1, 3 * 16 * 4, 1000):
        monkeypatch.setattr(checkpoint_module, "_PIECE", piece)
        assert torch.equal(source.linear("model.layers.1.mlp.gate_up_proj").weight, whole)


def test_every_piece_is_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q][-1, -1] = torch.nan

    change(folder, spoil)
    monkeypatch.setattr(checkpoint_module, "_PIECE", 100)
    with pytest.raises(CheckpointError, match=f"{re.escape(Q)} has 1 or more"):
        Checkpoint.open(folder).linear("model.layers.1.self_attn.qkv_proj")


def test_derived_tables_of_old_exports_are_passed_over(folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)

    change(folder, add)
    Checkpoint.open(folder)


def _edit(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: change(folder, edit)


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda f: change_config(f, vocab_size=-1), r"config\.json: vocab_size is -1"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights: expected model.safeten"),
        (_only_pickled, r"only pickled weights \(pytorch_model\.bin\).*only safetensors are read"),
        (
            lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
            r"found adapter_model\.safetensors",
        ),
        (_truncate, r"model\.safetensors is truncated or no safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "is truncated or no safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "is truncated or no"),
        (_edit(lambda t: t.pop(Q)), f"lacks {re.escape(Q)}"),
        (
            _edit(lambda t: [t.pop(name) for name in list(t) if ".mlp." in name]),
            "and 3 more tensors",
        ),
        (_edit(lambda t: t.update({Q: t[Q][:8]})), r"shape \[8, 16\], expected \[16, 16\]"),
        (_edit(lambda t: t.update({Q: t[Q].view(-1)})), r"shape \[256\], expected \[16, 16\]"),
        (_edit(lambda t: t.update({Q: t[Q].half()})), "has dtype F16, expected F32"),
        (_edit(lambda t: t.update({Q: t[Q].to(torch.int8)})), "has dtype I8, expected F32, F16"),
        (_edit(lambda t: t.update({Q: t[Q].double()})), "has dtype F64"),
        (
            _edit(lambda t: t.update({n: v.to(torch.float8_e4m3fn) for n, v in t.items()})),
            "has dtype F8_E4M3, expected F32, F16, BF16",
        ),
        (
            _edit(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)})),
            r"has model\.layers\.0\.self_attn\.q_proj\.bias, which a llama .* no use for",
        ),
        (
            _edit(lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(24, 16)})),
            r"has model\.layers\.2\.mlp\.up_proj\.weight",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[Path], object], words: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        Checkpoint.open(folder)
    assert isinstance(caught.value, LamellaError)
    assert str(folder) in str(caught.value)


def test_biases_are_all_or_none(tmp_path: Path) -> None:
    write(tmp_path, "Qwen2")
    change(tmp_path, lambda t: t.pop("model.layers.0.self_attn.k_proj.bias"))
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.0\.self_attn\.k_proj\.bias"):
        Checkpoint.open(tmp_path)


def test_quantised_checkpoints_are_refused_by_name(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedError, match="quant_method 'gptq'"):
        Checkpoint.open(folder)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint.open(tmp_path / "nowhere")


def test_names_the_model_has_not(original: Path) -> None:
    source = Checkpoint.open(original)
    for ask in (source.tensor, source.linear, source.nbytes):
        with pytest.raises(InvalidInputError, match="the model has no"):
            ask("model.layers.9.self_attn.qkv_proj")
    with pytest.raises(InvalidInputError, match="the model has no tensor"):
        source.nbytes("lm_head.weight")


def test_a_file_that_changes_after_opening_is_noticed(folder: Path) -> None:
    source = Checkpoint.open(folder)
    change(folder, lambda t: t.update({Q: t[Q][:, :8].contiguous()}))
    with pytest.raises(CheckpointError, match=f"{re.escape(Q)} changed since"):
        source.linear("model.layers.1.self_attn.qkv_proj")
    change(folder, lambda t: t.pop(Q))
    with pytest.raises(CheckpointError, match=f"{re.escape(Q)} can no longer be read"):
        source.linear("model.layers.1.self_attn.qkv_proj")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write(tmp_path / "sharded", shard="3KB")


def edit_index(folder: Path, name: str, file: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = file
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "file", ["/etc/passwd.safetensors", "../out.safetensors", "a/../../b.safetensors"]
)
def test_an_index_may_not_point_outside(sharded: Path, file: str) -> None:
    edit_index(sharded, Q, file)
    with pytest.raises(CheckpointError, match=r"outside the checkpoint's folder"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("file", [3, None, ["a"], "weights.bin", ""])
def test_an_index_names_safetensors(sharded: Path, file: object) -> None:
    edit_index(sharded, Q, file)
    with pytest.raises(CheckpointError, match=r"expected the name of a \.safetensors file"):
        Checkpoint.open(sharded)


def test_a_link_may_not_lead_outside(sharded: Path, tmp_path: Path) -> None:
    shard = next(sharded.glob("model-00001-*"))
    outside = tmp_path / "elsewhere.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"a link out of the checkpoint's folder to"):
        Checkpoint.open(sharded)
    # a link that stays inside is fine
    outside.rename(sharded / "renamed.safetensors")
    shard.unlink()
    shard.symlink_to(sharded / "renamed.safetensors")
    Checkpoint.open(sharded)


def test_a_hugging_face_cache_is_read(sharded: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "rev"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sharded.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    source = Checkpoint.open(snapshot)
    assert source.linear("lm_head").weight.shape == (33, 16)


def test_an_index_matches_its_files(sharded: Path) -> None:
    whole = (sharded / INDEX).read_text()
    shards = sorted(set(json.loads(whole)["weight_map"].values()))
    other = next(name for name in shards if name != json.loads(whole)["weight_map"][Q])
    edit_index(sharded, Q, other)
    with pytest.raises(CheckpointError, match=re.escape(f"places in '{other}'")):
        Checkpoint.open(sharded)
    (sharded / INDEX).write_text(whole)
    edit_index(sharded, "model.layers.7.mlp.up_proj.weight", shards[0])
    with pytest.raises(CheckpointError, match=r"lacks 'model\.layers\.7\.mlp\.up_proj\.weight'"):
        Checkpoint.open(sharded)
    (sharded / INDEX).write_text(whole)
    (sharded / shards[2]).unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(shards[2])} is missing"):
        Checkpoint.open(sharded)
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": []}'):
        (sharded / INDEX).write_text(text)
        with pytest.raises(CheckpointError, match="has no weight_map"):
            Checkpoint.open(sharded)
    (sharded / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json is not valid JSON"):
        Checkpoint.open(sharded)


MEASURE = """
import sys
from model.checkpoint import Checkpoint

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

source = Checkpoint.open(sys.argv[1])
source.tensor("model.norm.weight")
before = peak()
embedding = source.tensor("model.embed_tokens.weight")
print(peak() - before, embedding.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_a_tensor_takes_its_own_size_and_little_more(folder: Path) -> None:
    """The file's pages are not added to the process's memory; measured in a fresh process."""
    rows = 1_500_000
    change_config(folder, vocab_size=rows, tie_word_embeddings=True)

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]
        tensors["model.embed_tokens.weight"] = torch.ones(rows, 16)

    change(folder, grow)
    root = Path(checkpoint_module.__file__).parent.parent
    run = [sys.executable, "-c", MEASURE, str(folder)]
    result = subprocess.run(run, capture_output=True, text=True, cwd=root, check=True)
    peak, size = map(int, result.stdout.split())
    assert size == rows * 16 * 4  # 92 MiB
    assert 0.9 * size < peak < size + (20 << 20)

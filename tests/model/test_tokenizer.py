"""The tokenizer: streaming equals decoding, special tokens, chat templates as in transformers."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.trainers import BpeTrainer

from kernels.errors import CheckpointError, InvalidInputError, UnsupportedError
from model.tokenizer import Tokenizer

SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>"]
CHAT = """{{ bos_token }}{% for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('Unknown role ' + message['role']) }}
    {%- endif %}
    {{- '<|turn|>' + message['role'] + '\\n\\n' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|turn|>assistant\\n\\n' }}
{%- endif %}"""


def byte_level() -> Backend:
    """As GPT-2, Llama 3 and Qwen: tokens are strings of bytes."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        [Path(json.__file__).read_text(), "naïve café 日本語 🙂🙂"], trainer
    )
    backend.add_tokens([AddedToken("<tool>", special=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return backend


def byte_fallback() -> Backend:
    """As Llama 2 and Mistral: sentencepiece's word marks, and bytes for unknown characters."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz.,é", "th", "▁th", "▁a", "an", "▁▁"]
    merges = [("t", "h"), ("▁", "th"), ("▁", "a"), ("a", "n"), ("▁", "▁")]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(SPECIAL)
    return backend


def strips_two() -> Backend:
    """A decoder that drops more than one leading space."""
    backend = byte_fallback()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
    )
    return backend


def metaspace() -> Backend:
    backend = byte_fallback()
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return backend


def write(backend: Backend, folder: Path, **config: Any) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|begin|>", "eos_token": "<|end|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module", params=[byte_level, byte_fallback, metaspace, strips_two])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return Tokenizer.load(write(request.param(), tmp_path_factory.mktemp("tokenizer")))


def streamed(tokenizer: Tokenizer, ids: list[int], **options: Any) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*(stream.push(token) for token in ids), stream.flush()]


TEXTS = st.text(max_size=40) | st.text(alphabet="aé日🙂 th\ufffd.\n", max_size=40)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example("🙂" * 40)
def test_streaming_a_text_equals_decoding_it(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:  # no half of a character is ever shown
        assert "\ufffd" not in "".join(pieces)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_streaming_any_tokens_equals_decoding_them(
    tokenizer: Tokenizer, data: st.DataObject, skip: bool
) -> None:
    """Broken characters, special tokens amid them, and ids beyond the vocabulary."""
    size = tokenizer.vocab_size
    ids = data.draw(
        st.lists(st.integers(0, size + 2) | st.integers(0, 270) | st.integers(0, 3), max_size=40)
    )
    pieces = streamed(tokenizer, ids, skip_special_tokens=skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(first=TEXTS, second=st.text(alphabet="abé日🙂 th.\n", max_size=30))
def test_a_stream_continues_a_text(tokenizer: Tokenizer, first: str, second: str) -> None:
    before = tokenizer.encode(first)
    ids = tokenizer.encode(second, add_special_tokens=False)
    together = tokenizer.decode([*before[-32:], *ids])
    assert together.startswith(head := tokenizer.decode(before[-32:]))
    assert "".join(streamed(tokenizer, ids, after=before)) == together[len(head) :]


def test_a_leading_space_survives_only_amid_a_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(byte_fallback(), tmp_path))
    ids = tokenizer.encode("a an", add_special_tokens=False)
    assert tokenizer.decode(ids) == "a an"
    first, second = ids[:1], ids[1:]
    assert "".join(streamed(tokenizer, second)) == "an"
    assert "".join(streamed(tokenizer, second, after=first)) == " an"


def test_text_comes_as_soon_as_it_is_final(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(byte_level(), tmp_path))
    ids = tokenizer.encode("é🙂ok", add_special_tokens=False)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == "é🙂ok"
    assert pieces[-1] == ""
    whole = [piece for piece in pieces if piece]
    assert len(whole) >= 3
    assert not any("\ufffd" in piece for piece in whole)


def test_long_streams_stay_cheap(tmp_path: Path) -> None:
    """The window that is decoded again at each token does not grow with the text."""
    tokenizer = Tokenizer.load(write(byte_level(), tmp_path))
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    ids = tokenizer.encode((stdlib / "ast.py").read_text()[:6000], add_special_tokens=False)
    longest = 0
    stream = tokenizer.stream()
    inner = stream._decode

    def watched(tokens: Any) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return inner(tokens)

    stream._decode = watched
    assert "".join(stream.push(token) for token in ids) + stream.flush() == tokenizer.decode(ids)
    assert longest < 20


def test_encode_and_decode(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == tokenizer.encode("", add_special_tokens=True)
    ids = tokenizer.encode("the an", add_special_tokens=False)
    assert tokenizer.decode(ids) == "the an"
    assert tokenizer.decode([1, *ids, 2]) == "the an"
    assert tokenizer.decode([]) == ""
    shown = tokenizer.decode([1, *ids], skip_special_tokens=False)
    assert "<|end|>" in shown


def test_special_tokens_are_added_as_the_file_says(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(byte_level(), tmp_path))
    ids = tokenizer.encode("the")
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.encode("the", add_special_tokens=False) == ids[1:]
    assert tokenizer.encode("<|turn|>the", add_special_tokens=False)[0] == 2
    assert tokenizer.vocab_size == 401


def test_prompts_are_never_cut_or_padded(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    tokenizer = Tokenizer.load(write(backend, tmp_path))
    text = "the quick brown fox"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < 50


def test_where_special_ids_come_from(tmp_path: Path) -> None:
    write(byte_level(), tmp_path)
    assert Tokenizer.load(tmp_path).eos_token_ids == (1,)
    (tmp_path / "config.json").write_text('{"eos_token_id": 7, "bos_token_id": null}')
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (0, (7,))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2, 1]}')
    assert Tokenizer.load(tmp_path).eos_token_ids == (1, 2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id is 'x'"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_alone_is_enough(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.bos_token_id is None
    assert tokenizer.eos_token_ids == ()
    assert not tokenizer.has_chat_template
    with pytest.raises(UnsupportedError, match="the checkpoint has no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


def test_special_tokens_in_older_files(tmp_path: Path) -> None:
    write(
        byte_level(), tmp_path, eos_token=None, bos_token={"content": "<|turn|>", "lstrip": False}
    )
    (tmp_path / "special_tokens_map.json").write_text(
        '{"eos_token": {"content": "<|end|>"}, "bos_token": "<|end|>"}'
    )
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (2, (1,))


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("tokenizer.json", None, r"tokenizer\.json is missing"),
        ("tokenizer.json", "{}", r"tokenizer\.json is no tokenizer"),
        ("tokenizer_config.json", "[", r"tokenizer_config\.json is not valid JSON"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is 3, expected a text"),
        ("config.json", "{", r"config\.json is not valid JSON"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, file: str, text: str | None, words: str) -> None:
    write(byte_level(), tmp_path)
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(text)
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("ids", [[-1], [1.5], ["a"], [2**32], [True]])
def test_ids_are_checked(tokenizer: Tokenizer, ids: list[Any]) -> None:
    with pytest.raises(InvalidInputError, match="token id is"):
        tokenizer.decode(ids)


@pytest.mark.parametrize("text", [3, None, "\ud800"])
def test_texts_are_checked(tokenizer: Tokenizer, text: Any) -> None:
    with pytest.raises(InvalidInputError, match="cannot encode"):
        tokenizer.encode(text)


CONVERSATIONS = [
    [{"role": "user", "content": '  Hi <b>&"é"</b> 🙂 \n'}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": ""},
    ],
]
TEMPLATES = {
    "llama-3-like": CHAT,
    "blocks, loops, dates, namespaces": """
  {% set ns = namespace(count=0) %}
  {% for m in messages if m.role != 'system' %}
    {% if loop.index0 > 5 %}{% break %}{% endif %}
    {% set ns.count = ns.count + 1 %}
    {% generation %}{{ m | tojson }}{% endgeneration %}

  {% endfor %}
  {{ ns.count }}{{ dict(a=1) }}{{ strftime_now("%Y") }}{{ unk_token is defined }}
  {{ documents is none }}
""",
}


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["user", "turns"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("template", list(TEMPLATES))
def test_chat_templates_give_what_transformers_gives(
    template: str, prompt: bool, messages: list[dict[str, str]], tmp_path: Path
) -> None:
    write(byte_level(), tmp_path, chat_template=TEMPLATES[template])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"),
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template=TEMPLATES[template],
    )
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    ours = Tokenizer.load(tmp_path)
    assert ours.has_chat_template
    assert ours.apply_chat_template(messages, add_generation_prompt=prompt) == expected


def test_where_chat_templates_come_from(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write(byte_level(), tmp_path, chat_template=named)
    messages = [{"role": "user", "content": "x"}]
    assert Tokenizer.load(tmp_path).apply_chat_template(messages) == "d"
    (tmp_path / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert Tokenizer.load(tmp_path).apply_chat_template(messages) == "file x"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (CHAT, "Unknown role tool"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ namespace.__init__.__globals__ }}", "unsafe"),
        ("{% set n = namespace(__call__=1) %}", "may not store the name '__call__'"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "may not store the name '_x'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'tokenizer.json' %}", "no loader"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_refused(
    template: str, words: str, tmp_path: Path
) -> None:
    write(byte_level(), tmp_path, chat_template=template)
    with pytest.raises(InvalidInputError, match=words):
        Tokenizer.load(tmp_path).apply_chat_template([{"role": "tool", "content": "x"}])


def test_a_template_that_is_no_template(tmp_path: Path) -> None:
    write(byte_level(), tmp_path, chat_template="{% if %}")
    with pytest.raises(CheckpointError, match="chat template, line 1"):
        Tokenizer.load(tmp_path).apply_chat_template([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "messages", [[], ["x"], [{"content": "x"}], [{"role": "user", "content": {1}}]]
)
def test_messages_are_checked(messages: Any, tmp_path: Path) -> None:
    write(byte_level(), tmp_path, chat_template=CHAT)
    words = r"chat message is|refuses the messages|expected at least one message"
    with pytest.raises(InvalidInputError, match=words):
        Tokenizer.load(tmp_path).apply_chat_template(messages)

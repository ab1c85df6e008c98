"""Train the small Llama model that ships in model/bundled, from Python's own standard library.

The corpus is what every interpreter already carries, so the run needs no download. The defaults
are those of the committed weights; another interpreter, library version or processor gives other
bits of equal quality. training.json records what a run used and what it reached.

    python scripts/train_bundled_model.py --out model/bundled
"""

import argparse
import copy
import ctypes
import hashlib
import json
import math
import os
import platform
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

BOS, EOS = "<|bos|>", "<|eos|>"

HELD_OUT = ("fractions.py", "graphlib.py", "heapq.py", "shlex.py", "textwrap.py")

# Tests, tables of data, bundled applications and whatever belongs to one installation.
SKIPPED_PARTS = {
    "__phello__", "dist-packages", "encodings", "ensurepip", "idle_test", "idlelib", "lib2to3",
    "pydoc_data", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "html/entities.py", "lib-dynload", "sitecustomize")

# A run of spaces is one piece, so that indentation is one token; a single space goes with the
# word it precedes; digits stay apart; newlines never join the indentation after them, so that a
# prompt ending in a newline is cut as it was in training.
PIECES = r" {2,}|\t+|[\r\n]+| ?[\p{L}_]+| ?\p{N}| ?[^\s\p{L}\p{N}_]+|\s"

SAMPLE_PROMPTS = (
    "def fibonacci(n):",
    "import os\n\nclass ",
    "    for i in range(",
    "def read_lines(path):\n    ",
    "class Stack:\n    def __init__(self",
    "    try:\n        value = int(",
)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a run; everything that changes the weights besides the corpus."""

    steps: int
    seed: int
    threads: int
    vocab_size: int = 2048
    tokens_per_step: int = 8192
    tokens_per_pass: int = 2048
    length: int = 512
    long_length: int = 1024
    long_share: float = 0.1
    muon_lr: float = 0.02
    muon_weight_decay: float = 0.1
    adamw_lr: float = 3e-3
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 60
    stable_share: float = 0.3
    clip_norm: float = 1.0


def keep_freed_memory() -> None:
    """Let glibc reuse large buffers: fresh pages for every activation cost a tenth of the time."""
    m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_mmap_threshold, 2**30)


def is_corpus_file(name: str) -> bool:
    """Whether the file at this path below the standard library is worth learning from."""
    return not (SKIPPED_PARTS & set(name.split("/")) or name.startswith(SKIPPED_PREFIXES))


def standard_library() -> dict[str, str]:
    """Sources by path relative to the library, in path order, each distinct text once."""
    root = Path(sysconfig.get_paths()["stdlib"])
    sources: dict[str, str] = {}
    seen: set[bytes] = set()
    for name in sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")):
        if not is_corpus_file(name):
            continue
        data = (root / name).read_bytes()
        digest = hashlib.sha256(data).digest()
        if not data.strip() or digest in seen:
            continue
        seen.add(digest)
        try:
            sources[name] = data.decode("utf-8")
        except UnicodeDecodeError:
            continue  # a handful of old modules are written in other encodings
    return sources


def split_held_out(sources: dict[str, str]) -> tuple[dict[str, str], str]:
    """The training files, and the held-out modules joined to one text."""
    missing = set(HELD_OUT) - set(sources)
    if missing:
        raise FileNotFoundError(f"standard library lacks held-out modules {sorted(missing)}")
    training = {name: text for name, text in sources.items() if name not in HELD_OUT}
    return training, "".join(sources[name] for name in HELD_OUT)


def describe_corpus(training: dict[str, str], stream: Tensor) -> dict[str, object]:
    """Size and fingerprint, so that another run can tell whether it read the same text."""
    digest = hashlib.sha256()
    for name, text in training.items():
        digest.update(f"{name}\0{text}\0".encode())
    return {
        "source": "Python standard library",
        "python": platform.python_version(),
        "files": len(training),
        "bytes": sum(len(text.encode()) for text in training.values()),
        "tokens": stream.numel(),
        "sha256": digest.hexdigest(),
    }


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE that restores every text exactly and puts BOS before it on request."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B:1",
        special_tokens=[(BOS, special_id(tokenizer, BOS))],
    )
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a special token, which the vocabulary must have."""
    index = tokenizer.token_to_id(token)
    if index is None:
        raise KeyError(f"the tokenizer lacks {token}")
    return index


def pack(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """One stream of token ids, `BOS source EOS` for every text; int64 [tokens]."""
    bos, eos = special_id(tokenizer, BOS), special_id(tokenizer, EOS)
    encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    return torch.tensor(list(chain.from_iterable([bos, *ids, eos] for ids in encoded)))


def batches(stream: Tensor, bos: int, length: int, rows: int, seed: int) -> Iterator[Tensor]:
    """Endless shuffled windows, int64 [rows, length + 1], each led by BOS.

    Prompts start with BOS wherever in a file they come from, hence so do the windows. Every
    epoch cuts the stream at another phase.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        phase = int(torch.randint(length, (1,), generator=generator))
        count = (stream.numel() - phase) // length
        windows = stream[phase : phase + count * length].view(count, length)
        windows = F.pad(windows, (1, 0), value=bos)
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - rows + 1, rows):
            yield windows[order[start : start + rows]]


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A freshly initialised model; projections onto the residual stream start smaller."""
    bos, eos = special_id(tokenizer, BOS), special_id(tokenizer, EOS)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    # Plain matrix products use the processor's bfloat16 units, which fused attention does not.
    model: LlamaForCausalLM = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.mul_((2 * config.num_hidden_layers) ** -0.5)
    return model


def build_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (inner if name.endswith("_proj.weight") else outer).append(parameter)
    return [
        torch.optim.Muon(inner, lr=recipe.muon_lr, weight_decay=recipe.muon_weight_decay),
        torch.optim.AdamW(
            outer, lr=recipe.adamw_lr, betas=recipe.adamw_betas, weight_decay=0.0, fused=True
        ),
    ]


def rate(step: int, recipe: Recipe) -> float:
    """Factor on the learning rates: warm-up, level, then linear to zero."""
    level_end = recipe.stable_share * recipe.steps
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    return min(1.0, (recipe.steps - step) / (recipe.steps - level_end))


def token_loss(model: LlamaForCausalLM, window: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of each token of `window` [rows, length + 1] but the first."""
    logits = model(input_ids=window[:, :-1], use_cache=False).logits
    return F.cross_entropy(
        logits.float().flatten(0, 1), window[:, 1:].flatten(), reduction=reduction
    )


def train_step(
    model: LlamaForCausalLM, data: Iterator[Tensor], passes: int, recipe: Recipe
) -> float:
    """Accumulate clipped gradients over `passes` batches; the mean loss in nats per token.

    Passes are small because their activations then stay in the processor's caches.
    """
    total = 0.0
    for _ in range(passes):
        with torch.autocast("cpu", torch.bfloat16):
            loss = token_loss(model, next(data)) / passes
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    return total


@torch.no_grad()
def held_out_scores(
    model: LlamaForCausalLM, tokenizer: Tokenizer, text: str, length: int = 512
) -> dict[str, object]:
    """Perplexity per token and bits per byte of `text`, every token predicted once."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    bos = torch.tensor([special_id(tokenizer, BOS)])
    nats = 0.0
    for chunk in ids.split(length - 1):
        # The last prediction of a window has no target, so it needs no input either.
        nats += token_loss(model, torch.cat([bos, chunk])[None], reduction="sum").item()
    return {
        "perplexity": round(math.exp(nats / ids.numel()), 4),
        "bits_per_byte": round(nats / math.log(2) / len(text.encode()), 4),
        "tokens": ids.numel(),
        "bytes": len(text.encode()),
        "modules": list(HELD_OUT),
        "protocol": (
            f"heldout.txt tokenised as one text without special tokens and cut into consecutive "
            f"pieces of {length - 1} tokens, the last one shorter; {BOS} before each piece gives "
            f"non-overlapping windows of {length} tokens; every token of the text is predicted "
            f"once, from its window alone; perplexity = exp(sum of negative log likelihoods / "
            f"tokens); float32 arithmetic on the saved bfloat16 weights"
        ),
    }


def as_saved(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A float32 copy whose weights went through bfloat16, as a reader of the files gets them."""
    return copy.deepcopy(model).bfloat16().float()


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` in one step, so that readers never see half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="")
    os.replace(partial, path)


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write indented JSON atomically."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer.json and the few settings that transformers wants beside it."""
    write_atomically(out / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", settings)


def save_model(model: LlamaForCausalLM, out: Path) -> None:
    """Write config, generation config and bfloat16 weights, each replaced in one step."""
    with tempfile.TemporaryDirectory(dir=out) as partial:
        copy.deepcopy(model).bfloat16().save_pretrained(partial)
        for path in sorted(Path(partial).iterdir()):
            path.chmod(0o644)  # weights are written readable to their owner alone
            os.replace(path, out / path.name)


@torch.no_grad()
def continuations(model: LlamaForCausalLM, tokenizer: Tokenizer, count: int = 64) -> Iterator[str]:
    """The sample prompts with `count` more tokens drawn at temperature 0.6, seeded."""
    torch.manual_seed(0)
    for prompt in SAMPLE_PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        output = model.generate(  # type: ignore[misc]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=True,
            temperature=0.6,
            pad_token_id=special_id(tokenizer, EOS),
        )
        yield tokenizer.decode(output[0].tolist())


class Run:
    """One training run: its data, its state and what it has to tell about itself."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out, self.started = recipe, out, time.monotonic()
        training, self.held_out = split_held_out(standard_library())
        texts = list(training.values())
        self.tokenizer = train_tokenizer(texts, recipe.vocab_size)
        self.bos = special_id(self.tokenizer, BOS)
        self.stream = pack(self.tokenizer, texts)
        self.corpus = describe_corpus(training, self.stream)
        self.model = build_model(self.tokenizer)
        self.optimizers = build_optimizers(self.model, recipe)
        self.schedules = [
            LambdaLR(optimizer, lambda step: rate(step, recipe)) for optimizer in self.optimizers
        ]
        self.losses: list[float] = []

    def data(self, length: int) -> Iterator[Tensor]:
        """Batches of windows of `length`, as many rows as one pass takes."""
        rows = self.recipe.tokens_per_pass // length
        return batches(self.stream, self.bos, length, rows, self.recipe.seed + length)

    def train(self, save_every: int, log_every: int = 50) -> None:
        """All steps: short windows first, long ones at the end to cover every position."""
        recipe = self.recipe
        passes = recipe.tokens_per_step // recipe.tokens_per_pass
        first_long = round(recipe.steps * (1 - recipe.long_share))
        short, long = self.data(recipe.length), self.data(recipe.long_length)
        for step in range(recipe.steps):
            loss = train_step(self.model, short if step < first_long else long, passes, recipe)
            self.losses.append(loss)
            for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if (step + 1) % log_every == 0:
                self.log(log_every)
            if (step + 1) % save_every == 0 and step + 1 < recipe.steps:
                self.save(complete=False)

    def log(self, count: int) -> None:
        """Print the mean loss of the last `count` steps and the pace so far."""
        steps, seconds = len(self.losses), time.monotonic() - self.started
        loss = sum(self.losses[-count:]) / count
        pace = steps * self.recipe.tokens_per_step / seconds
        print(f"step {steps} loss {loss:.4f} {pace:.0f} tokens/s {seconds:.0f} s", flush=True)

    def save(self, complete: bool) -> None:
        """Write every file of the model directory; `complete` once training is over."""
        write_atomically(self.out / "heldout.txt", self.held_out)
        save_tokenizer(self.tokenizer, self.out)
        save_model(self.model, self.out)
        record = self.record(complete)
        write_json(self.out / "training.json", record)
        print(f"saved, held-out {record['held_out']}", flush=True)

    def record(self, complete: bool) -> dict[str, object]:
        """The content of training.json."""
        recent = self.losses[-50:]
        return {
            "complete": complete,
            "command": f"python scripts/train_bundled_model.py --steps {self.recipe.steps}"
            f" --seed {self.recipe.seed} --threads {self.recipe.threads}",
            "corpus": self.corpus,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "recipe": asdict(self.recipe),
            "parameters": self.model.num_parameters(),
            "steps_done": len(self.losses),
            "tokens_seen": len(self.losses) * self.recipe.tokens_per_step,
            "train_loss_nats_last_50_steps": round(sum(recent) / len(recent), 4),
            "held_out": held_out_scores(as_saved(self.model), self.tokenizer, self.held_out),
            "wall_seconds": round(time.monotonic() - self.started),
        }


def parse_arguments() -> argparse.Namespace:
    """Options; the defaults are those of the committed weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("model/bundled"))
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=260, help="steps between checkpoints")
    return parser.parse_args()


def main() -> None:
    """Train, save and show what the saved model writes."""
    arguments = parse_arguments()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = Run(Recipe(arguments.steps, arguments.seed, arguments.threads), arguments.out)
    print(json.dumps(run.corpus), flush=True)
    run.train(arguments.save_every)
    run.save(complete=True)
    for text in continuations(as_saved(run.model), run.tokenizer):
        print("-" * 40, text, sep="\n")


if __name__ == "__main__":
    main()

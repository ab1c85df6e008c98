"""What `--help` shows below the options: examples of each command."""

from __future__ import annotations

EXAMPLES = {
    "generate": (
        'lamella generate "def fibonacci(n):"',
        "lamella generate --stages 2 --kv-dtype int8 --max-new-tokens 100",
        "lamella generate -f prompts.txt --temperature 0.8 --top-p 0.9 --json",
        "torchrun --nproc-per-node 2 --no-python lamella generate -f prompts.txt",
    ),
    "parity": (
        "lamella parity --kv-dtype int8",
        "lamella parity --splits 1,3 --mode batch --steps 32 --json",
    ),
    "plan": (
        "lamella plan --stages 2 --kv-dtype int8 --kv-tokens 8192",
        "lamella plan --model llama-3.2-1b --splits 7,9",
    ),
    "eval": (
        "lamella eval --kv-dtype int8",
        "lamella eval notes.txt --model llama-3.2-1b --window 1024",
    ),
    "check": (
        "lamella check attention",
        "lamella check rms_norm --impl cpu --case bf16 --json",
        "lamella check rms_norm --impl my_kernels.py:rms_norm",
    ),
    "aot": (
        "lamella aot attention --arch sm_90",
        "lamella aot rms_norm --arch sm_100 --ptx",
        "lamella aot --json",
    ),
    "bench": (
        "lamella bench attention --case decode",
        "lamella bench linear --impl my_kernels.py:linear --like cpu",
        "lamella bench --plot roofline.svg --json",
    ),
    "compare": (
        "lamella compare attention --base HEAD~1",
        "lamella compare --base main --rounds 9 --json",
    ),
    "doctor": ("lamella doctor", "lamella doctor --json"),
}


def examples(command: str | None) -> list[str]:
    """Lines with examples of a command, or of all commands."""
    if command in EXAMPLES:
        return [f"   {line}" for line in EXAMPLES[command]]
    first = [f"   {lines[0]}" for lines in EXAMPLES.values()]
    return [*first, "", " Every command has its own --help."]


def reflow(text: str) -> str:
    """A docstring with the lines of each paragraph joined, so that `--help` can break them."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))

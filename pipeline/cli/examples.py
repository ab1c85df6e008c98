"""What `--help` shows below the options: examples of each command."""

from __future__ import annotations

EXAMPLES = {
    "generate": (
        'lamella generate "def fibonacci(n):"',
        "lamella generate --stages 2 --kv-dtype int8 --max-new-tokens 100",
        "lamella generate -f prompts.txt --temperature 0.8 --top-p 0.9 --json",
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
    "doctor": ("lamella doctor", "lamella doctor --json"),
}


def epilog(command: str | None) -> str:
    """Examples of a command, or the first of each."""
    lines = EXAMPLES[command] if command else [lines[0] for lines in EXAMPLES.values()]
    end = ["", "Every command has its own --help."] if command is None else []
    return "\n".join(["[bold]Examples[/]", *(f"  {line}" for line in lines), *end])


def reflow(text: str) -> str:
    """A docstring with the lines of each paragraph joined, so that `--help` can break them."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))

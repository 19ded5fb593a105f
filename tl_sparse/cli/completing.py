"""What a shell completes, as words: loading the library for each TAB would take seconds.

Tests hold these lists against the library's own.
"""

from collections.abc import Callable

TASKS = (
    "single_double_quote", "bracket_counting", "set_or_string", "set_or_string_fixedvarname",
    "final_kwarg", "class_init", "with_as", "with_open", "bracket_brace", "for_while",
    "else_elif", "fstring_brace", "if_ternary", "var_swap", "indent_for", "lambda_func",
    "if_equals", "enumerate_range", "var_if", "while_return_true", "induction", "ioi",
    "ioi_text", "nonsense_quotes",
)  # fmt: skip
FIGURES = ("figure2", "figure3", "activation", "optimizer", "methods", "capability", "concepts")
SWEEP_PRESETS = ("tiny", "laptop", "gpu", "paper")
TRAIN_PRESETS = ("tiny", "demo", "gpu")
ABLATIONS = ("corpus_mean", "task_mean", "zero", "resample_pair", "resample_corpus")
DEVICES = ("cpu", "cuda", "cuda:0", "cuda:1", "mps")
PRECISIONS = ("float32", "bf16", "fp16")
BENCH_KINDS = (
    "training", "memory", "inference", "linear", "projection", "abstopk", "pruning", "audit",
    "compiled",
)  # fmt: skip
BENCH_SIZES = ("tiny", "small", "paper", "large", "wide")


def one_of(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Complete one of some words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def some_of(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Complete the last of some words joined by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        named = before.split(",")
        rest = (word for word in words if word.startswith(last) and word not in named)
        return [f"{before}{comma}{word}" for word in rest]

    return complete

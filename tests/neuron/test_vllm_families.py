"""Parsers by the family of a model."""

import pytest

from neuron.engines.vllm_families import Parsers, parsers_for

KNOWN = (
    "hermes",
    "llama3_json",
    "llama4_pythonic",
    "mistral",
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_r1",
    "qwen3",
    "qwen3_coder",
    "openai",
    "openai_gptoss",
    "glm45",
)


@pytest.mark.parametrize(
    ("model", "tool_call", "reasoning"),
    [
        ("Qwen/Qwen3-0.6B", "hermes", "qwen3"),
        ("Qwen/Qwen3-4B-Instruct-2507", "hermes", None),
        ("Qwen/Qwen3-4B-Thinking-2507", "hermes", "deepseek_r1"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder", None),
        ("Qwen/Qwen3-Embedding-0.6B", None, None),
        ("Qwen/Qwen2.5-7B-Instruct", "hermes", None),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3_json", None),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4_pythonic", None),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistral", None),
        ("mistralai/Magistral-Small-2506", "mistral", "mistral"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek_v3", "deepseek_r1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None, "deepseek_r1"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek_v3", None),
        ("openai/gpt-oss-20b", "openai", "openai_gptoss"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "hermes", None),
        ("BAAI/bge-m3", None, None),
        ("mistral/private-thing", None, None),
    ],
)
def test_family_is_told_by_the_name(
    model: str, tool_call: str | None, reasoning: str | None
) -> None:
    """vLLM's documentation: the parsers that it names for each family."""
    assert parsers_for(model, (), KNOWN) == Parsers(tool_call=tool_call, reasoning=reasoning)


def test_architecture_counts_where_the_name_says_nothing() -> None:
    """Ours: a folder may have any name."""
    assert parsers_for("/models/mine", ("Qwen3ForCausalLM",), KNOWN).tool_call == "hermes"


def test_parser_that_the_installed_vllm_lacks_is_not_returned() -> None:
    """Ours: another version of vLLM must not fail over the table."""
    assert parsers_for("Qwen/Qwen3-0.6B", (), ()) == Parsers()

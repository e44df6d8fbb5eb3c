"""Engine options: sorted, checked, named."""

from typing import Literal

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import InvalidRequestError
from neuron.engines.vllm_options import RESERVED, ServingOptions, check_parser, read_options

FIELDS: dict[str, object] = {
    "max_model_len": int,
    "gpu_memory_utilization": float,
    "quantization": str | None,
    "runner": Literal["auto", "generate", "pooling"],
    "hf_overrides": dict[str, object],
    "cudagraph_capture_sizes": list[int] | None,
    "enforce_eager": bool,
    "compilation_config": "CompilationConfig",
    "model": str,
}


def test_options_are_sorted_by_who_takes_them() -> None:
    """Ours: parsers and templates go to the serving classes, the rest to the engine."""
    options = read_options({"max_model_len": 5, "tool_call_parser": "hermes"}, FIELDS)

    assert options.engine == {"max_model_len": 5}
    assert options.serving == ServingOptions(tool_call_parser="hermes")


@pytest.mark.parametrize(
    "given_options",
    [
        {"max_model_len": 4096},
        {"gpu_memory_utilization": 1},
        {"gpu_memory_utilization": 0.5},
        {"quantization": None},
        {"quantization": "awq"},
        {"runner": "pooling"},
        {"hf_overrides": {"a": 1}},
        {"cudagraph_capture_sizes": [1]},
        {"enforce_eager": True},
        {"compilation_config": {"level": 3}},
    ],
)
def test_value_of_the_right_type_is_taken(given_options: dict[str, object]) -> None:
    """Ours: what TOML and JSON can say of each type; what is not Python's own is left to vLLM."""
    assert read_options(given_options, FIELDS).engine == given_options


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_model_len", "5", "expected int"),
        ("max_model_len", True, "expected int"),
        ("max_model_len", 5.0, "expected int"),
        ("enforce_eager", 1, "expected bool"),
        ("runner", "train", "expected Literal"),
        ("hf_overrides", [1], "expected dict"),
        ("max_model_length", 5, "did you mean 'max_model_len'?"),
        ("tool_parser", "hermes", "did you mean"),
        ("completely_different", 5, "there is no engine option"),
        ("model", "x", "set by the neuron"),
        ("response_role", 5, "response_role"),
        ("chat_template_content_format", "xml", "chat_template_content_format"),
    ],
)
def test_wrong_option_is_named(name: str, value: object, words: str) -> None:
    """Ours: `param` is the option, and the message says what would be right."""
    with pytest.raises(InvalidRequestError) as caught:
        read_options({name: value}, FIELDS)

    assert caught.value.param == f"engine.{name}"
    assert words in caught.value.message


@given(st.sampled_from(sorted(RESERVED)))
def test_what_the_neuron_sets_cannot_be_given(name: str) -> None:
    """Ours: also when vLLM knows it."""
    with pytest.raises(InvalidRequestError):
        read_options({name: "x"}, {name: str})


def test_parser_must_exist_but_may_be_turned_off() -> None:
    """Ours: `none` and nothing are always right."""
    for name in ("hermes", "none", None, ""):
        check_parser("tool_call_parser", name, ["hermes", "mistral"])

    with pytest.raises(InvalidRequestError, match="did you mean 'mistral'"):
        check_parser("tool_call_parser", "mistrall", ["hermes", "mistral"])

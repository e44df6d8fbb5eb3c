"""Which parsers of vLLM read the output of which family of models.

The names are vLLM 0.32's (`vllm.tool_parsers`, `vllm.reasoning`; its documentation pages
"Tool Calling" and "Reasoning Outputs", read November 2026). A profile overrides them with
`tool_call_parser` and `reasoning_parser`.
"""

import re
from collections.abc import Sequence

import msgspec


class Parsers(msgspec.Struct, frozen=True, kw_only=True):
    """Parsers of one family; `None` means that there is none."""

    tool_call: str | None = None
    reasoning: str | None = None


_FAMILIES: Sequence[tuple[re.Pattern[str], Parsers]] = [
    (re.compile(pattern, re.IGNORECASE), Parsers(tool_call=tool_call, reasoning=reasoning))
    for pattern, tool_call, reasoning in (
        (r"qwen3[.\d]*-coder", "qwen3_coder", None),
        (r"qwen3[-_.\w]*thinking", "hermes", "deepseek_r1"),
        (r"qwen3[-_.\w]*instruct", "hermes", None),
        (r"qwq", "hermes", "deepseek_r1"),
        (r"deepseek[-_]?r1[-_]distill", None, "deepseek_r1"),
        (r"qwen3(?!.*(embedding|reranker))", "hermes", "qwen3"),
        (r"qwen2", "hermes", None),
        (r"hermes", "hermes", None),
        (r"llama-?4", "llama4_pythonic", None),
        (r"llama-?3[._]?[123]", "llama3_json", None),
        (r"deepseek[-_]?r1", "deepseek_v3", "deepseek_r1"),
        (r"deepseek[-_]?v3[._]1", "deepseek_v31", "deepseek_v3"),
        (r"deepseek[-_]?v3", "deepseek_v3", None),
        (r"magistral", "mistral", "mistral"),
        (r"mistral|mixtral|devstral|ministral", "mistral", None),
        (r"gpt[-_]oss", "openai", "openai_gptoss"),
        (r"glm-?4[.]5|glm-?4[.]6", "glm45", "glm45"),
        (r"granite-?3", "granite", "granite"),
        (r"phi-?4-mini", "phi4_mini_json", None),
        (r"xlam", "xlam", None),
    )
]


def parsers_for(model: str, architectures: Sequence[str], known: Sequence[str]) -> Parsers:
    """Return the parsers of the family that a model is of.

    Args:
        model: its id; the part after the last `/` is what families are told by.
        architectures: as in its `config.json`, n >= 0; used when the id says nothing.
        known: names of the parsers that the installed vLLM has; others are never returned.

    Returns:
        Both `None` when the family is not known.
    """
    for text in (model.rsplit("/", 1)[-1], *architectures):
        for pattern, parsers in _FAMILIES:
            if pattern.search(text):
                return Parsers(
                    tool_call=parsers.tool_call if parsers.tool_call in known else None,
                    reasoning=parsers.reasoning if parsers.reasoning in known else None,
                )
    return Parsers()

"""What went wrong in vLLM, said in cortex's errors: short, and without its internals."""

import re
from collections.abc import Mapping, Sequence

from cortex_core.errors import (
    ContextLengthError,
    EngineError,
    InsufficientVramError,
    InvalidJsonError,
    InvalidRequestError,
    ModelLoadFailedError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    RequestError,
)
from cortex_core.harness import Route

_MAX_CHARS = 400
"""Length of the longest message that is passed on."""

_MAX_CAUSE_CHARS = 200
"""Length up to which more sentences of the reason of a failed load are taken."""
_MAX_RAW_CHARS = 4000
_PYDANTIC = re.compile(r"^\d+ validation errors? for \w+ (?:Value error, )?")

_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt)): (.+)$", re.MULTILINE)
_BARE = re.compile(r"^(MemoryError)$", re.MULTILINE)
_REFERRAL = re.compile(r"see (?:the )?(?:root cause|stack trace)|initialization failed", re.I)
"""Sentences with which vLLM only says that the reason stands further up."""
_FAILED_PROCESSES = re.compile(r"Failed core proc\(s\): \{[^}]*?: (-?\d+)")
_PATH = re.compile(r"(?<![\w.])/(?:[\w.@+-]+/)+[\w.@+-]*")
_VALUES = re.compile(r" \(parameter=[^)]*\)$")
"""What vLLM appends to the text of its validation errors."""

_SOURCE_LINE = re.compile(r"\[[\d:]+\] \S+:\d+: ")
"""Time, file and line that C++ libraries put before their message."""
_NO_MODEL = re.compile(r"The model `([^`]+)` does not exist")

_NO_PARSER = (
    "the engine does not read tool calls out of this model's text: load it with the engine "
    "option tool_call_parser, or ask with tool_choice 'none'"
)
_KNOWN_REFUSALS = (
    (re.compile(r'^"auto" tool choice requires'), "tools", _NO_PARSER),
    (re.compile(r"^tool_choice=.* requires --tool-call-parser"), "tool_choice", _NO_PARSER),
    (
        re.compile(r"^Chat template is passed with request"),
        "chat_template",
        "a request must not bring a chat template: load the model with the engine option "
        "trust_request_chat_template to allow it",
    ),
    (re.compile(r"^Unsupported chat content part type"), "messages", None),
    (re.compile(r"empty conversation"), "messages", None),
    (re.compile(r"^n must be 1 when using greedy"), "n", None),
    (re.compile(r"^stop cannot contain"), "stop", None),
    (re.compile(r"dimensions must be unset|Matryoshka"), "dimensions", None),
    (re.compile(r"json schema into a grammar"), "response_format", None),
    (re.compile(r"^continue_final_message and add_generation"), "continue_final_message", None),
)
"""Sentences of vLLM's that name no field, or another than the caller's; what to say instead
where they speak of vLLM's own command line."""

_NO_PROMPT = re.compile(r"at least one prompt|out of vocabulary")
_PROMPT_FIELDS = {
    Route.COMPLETIONS.value: "prompt",
    Route.GENERATE.value: "token_ids",
    Route.EMBEDDINGS.value: "input",
    Route.CHAT_COMPLETIONS.value: "messages",
}

_CONTEXT_LIMIT = re.compile(r"maximum (?:context|model) length (?:is |of |\()(\d+)")
_CONTEXT_PROMPT = re.compile(
    r"(?:contains (?:at least )?|requested |[Ii]nput length \(|prompt \(length )(\d+)(?! characters)\b"
)
_SIZE = re.compile(r"([\d.]+) (B|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def root_cause(log: str, raised: str, *, was_short: bool = False) -> str:
    """Return the sentence that says why an engine did not come up.

    Args:
        log: what the engine's processes logged, with tracebacks; may be empty.
        raised: text of what the load raised in this process, often a mere referral.
        was_short: whether the kernel killed a process meanwhile because memory was short.

    Returns:
        One line, at most 400 characters.
    """
    causes = [found[2] for found in _EXCEPTION.finditer(log) if not _REFERRAL.search(found[2])]
    if causes:
        return _first_sentences(causes[-1])
    ended = _FAILED_PROCESSES.search(raised)
    if ended:
        return describe_exit(int(ended[1]), was_short=was_short)
    if _REFERRAL.search(raised):
        return "the engine process did not start"
    return _first_sentences(raised)


def last_words(log: str) -> str | None:
    """Return what an engine that served failed of, or `None` where its processes do not say.

    Args:
        log: what they logged as errors while it served.
    """
    # Python's own says nothing but its name.
    log = _BARE.sub(r"\1: out of memory", log)
    causes = [found[2] for found in _EXCEPTION.finditer(log) if not _REFERRAL.search(found[2])]
    if "EngineCore encountered a fatal error" not in log or not causes:
        return None
    return f"the engine failed: {_first_sentences(causes[-1])}"


def describe_exit(status: int, *, was_short: bool = False) -> str:
    """Return what became of an engine process.

    Args:
        status: of its end; negative is the signal that ended it.
        was_short: whether the kernel killed a process meanwhile because memory was short.
    """
    if status == -9 and was_short:
        return "the machine ran out of memory, and the engine process was killed (signal 9)"
    if status == -9:
        return "the engine process was killed (signal 9)"
    if status < 0:
        return f"the engine process was ended by signal {-status}"
    return f"the engine process ended with status {status}"


def load_error(cause: str, model: str) -> RequestError:
    """Return the error of a load that failed.

    Args:
        cause: one line, as `root_cause` gives it.
        model: the model's id.
    """
    if "out of memory" in cause and "killed" not in cause:
        return _out_of_memory(cause)
    if "Free memory on device" in cause or "No available memory for the cache" in cause:
        return _out_of_memory(cause)
    if "is not a local folder" in cause or "not a valid model identifier" in cause:
        return NotFoundError(f"there are no weights for {model!r}: the hub has no such model")
    if "KV cache is needed" in cause or "max_model_len" in cause or "max seq len" in cause:
        return InvalidRequestError(cause, param="engine.max_model_len")
    if "are not supported for now" in cause or "architecture" in cause.lower():
        return InvalidRequestError(f"{model!r} cannot be loaded: {cause}", param="model_id")
    return ModelLoadFailedError(f"{model!r} cannot be loaded: {cause}")


def request_error(
    status: int, message: str, param: str | None, route: str | None = None
) -> RequestError:
    """Return the error that an answer of vLLM's serving classes means.

    Args:
        status: HTTP status that vLLM gives it.
        message: its sentence.
        param: the field that it names, or `None`.
        route: where it was asked, to name it when vLLM has nothing there.
    """
    sentence = _one_line(_VALUES.sub("", message))
    if status in (400, 422):
        return _context_error(sentence) or _invalid_request(sentence, param, route)
    if status == 404:
        missing = _NO_MODEL.search(sentence)
        return ModelNotFoundError(missing[1]) if missing else NotFoundError(sentence)
    if status == 501:
        return InvalidRequestError(f"this model does not answer {route}: {sentence}")
    if status == 503:
        return OverloadedError(sentence)
    return EngineError("the engine failed while it worked on the request")


def validation_error(errors: Sequence[Mapping[str, object]]) -> InvalidRequestError:
    """Return the error of a body that is not what the path takes.

    Args:
        errors: pydantic's `ValidationError.errors()`, n >= 1; the first counts.
    """
    first = errors[0]
    message = str(first.get("msg", "invalid"))
    if first.get("type") == "json_invalid":
        return InvalidJsonError(f"the body is not valid JSON: {_one_line(message)}")
    context = first.get("ctx")
    cause = context.get("error") if isinstance(context, Mapping) else None
    param = getattr(cause, "parameter", None)
    if not isinstance(param, str):
        location = first.get("loc")
        param = _field(location) if isinstance(location, tuple) else None
    message = _VALUES.sub("", message.removeprefix("Value error, "))
    where = f"{param}: " if param and param not in message else ""
    return InvalidRequestError(_one_line(f"{where}{message}"), param=param)


def _field(location: Sequence[object]) -> str | None:
    # Pydantic mixes the field's path with the branches of unions and wrappers that it tried;
    # those have brackets or are names of types. A list index after a field is its own.
    parts: list[str] = []
    for part in location:
        if isinstance(part, int):
            parts.append(str(part))
        elif isinstance(part, str) and _FIELD.fullmatch(part) and part not in _BRANCHES:
            parts.append(part)
    return ".".join(parts) or None


_FIELD = re.compile(r"[a-z_][a-z0-9_]*")
"""A field's name; the classes of a union are written with capitals."""
_BRANCHES = frozenset(
    {"str", "int", "float", "bool", "bytes", "list", "dict", "tuple", "nullable", "union", "none"}
    | {"chain", "default", "call", "arguments", "embed", "completion", "chat"}
)
"""Names of types and wrappers that pydantic-core writes into the location of an error."""


def _invalid_request(message: str, param: str | None, route: str | None) -> InvalidRequestError:
    """Return the error with the field at fault, where the sentence tells and vLLM did not."""
    for pattern, field, cure in _KNOWN_REFUSALS:
        if pattern.search(message):
            return InvalidRequestError(cure or message, param=field)
    if param is None and _NO_PROMPT.search(message):
        param = _PROMPT_FIELDS.get(route or "")
    return InvalidRequestError(message, param=param)


def _context_error(message: str) -> ContextLengthError | None:
    limit = _CONTEXT_LIMIT.search(message)
    if not limit:
        return None
    prompt = _CONTEXT_PROMPT.search(message)
    return ContextLengthError(
        message,
        prompt_tokens=int(prompt[1]) if prompt else None,
        limit_tokens=int(limit[1]),
    )


def _out_of_memory(cause: str) -> RequestError:
    sizes = [float(number) * _UNITS[unit] for number, unit in _SIZE.findall(cause)]
    free = re.search(r"([\d.]+)(?: ?(B|KiB|MiB|GiB|TiB))?[ \w]* is free|\(([\d.]+)/", cause)
    if not sizes or not free:
        return ModelLoadFailedError(f"out of device memory: {cause}")
    if free[3]:
        free_bytes, needed = float(free[3]) * _UNITS["GiB"], sizes[-1]
    else:
        free_bytes, needed = float(free[1]) * _UNITS[free[2] or "GiB"], sizes[0]
    return InsufficientVramError(
        f"out of device memory: {cause}", needed_bytes=int(needed), free_bytes=int(free_bytes)
    )


def _first_sentences(text: str) -> str:
    """Return the beginning of a message, which says what was wrong; advice comes after it."""
    line = _PYDANTIC.sub("", _one_line(text, _MAX_RAW_CHARS))
    kept = ""
    for sentence in re.split(r"(?<=[.!?)]) (?=[A-Z])", line):
        if kept and len(kept) + len(sentence) > _MAX_CAUSE_CHARS:
            break
        kept = f"{kept} {sentence}".strip()
    return _one_line(kept)


def _one_line(text: str, max_chars: int = _MAX_CHARS) -> str:
    line = " ".join(text.split())
    line = _SOURCE_LINE.sub("", line)
    line = _PATH.sub(lambda found: found[0].rstrip("/").rsplit("/", 1)[-1], line)
    return line if len(line) <= max_chars else f"{line[: max_chars - 3]}..."

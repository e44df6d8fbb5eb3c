"""The smallest JSON value that a JSON Schema allows, for the keywords that tools use."""

import math
from collections.abc import Mapping

from cortex_core.errors import InvalidRequestError

# Deeper than any real tool's arguments; a schema that needs more refers to itself.
_MAX_DEPTH = 32

_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "a@example.org",
    "hostname": "example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def smallest_instance(schema: object) -> object:
    """Return a small value that is valid under `schema`.

    Required properties only, as few items as allowed, the first of several alternatives.
    `pattern`, `not` and conditionals are read over.

    Raises:
        InvalidRequestError: the schema is malformed, refers to what is not there, or has no
            finite value.
    """
    return _instance(schema, schema, 0)


def _instance(schema: object, root: object, depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise InvalidRequestError("the JSON schema has no value of a reasonable depth")
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        raise InvalidRequestError(f"a JSON schema is an object, not {type(schema).__name__}")
    schema = _resolved(schema, root, depth)
    if "const" in schema:
        return schema["const"]
    values = schema.get("enum")
    if isinstance(values, list) and values:
        return values[0]
    return _typed(schema, root, depth)


def _resolved(schema: Mapping[str, object], root: object, depth: int) -> Mapping[str, object]:
    """Return `schema` with references, `allOf` and the first alternative merged into it."""
    if depth > _MAX_DEPTH:
        raise InvalidRequestError("the JSON schema refers to itself without end")
    parts: list[object] = []
    if "$ref" in schema:
        parts.append(_referred(schema["$ref"], root))
    parts.extend(_list(schema.get("allOf")))
    for name in ("anyOf", "oneOf"):
        parts.extend(_list(schema.get(name))[:1])
    merged = dict(schema)
    for name in ("$ref", "allOf", "anyOf", "oneOf"):
        merged.pop(name, None)
    for part in parts:
        if isinstance(part, Mapping):
            merged = _merged(merged, _resolved(part, root, depth + 1))
    return merged


def _merged(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, object]:
    both = {**one, **other}
    first, second = one.get("properties"), other.get("properties")
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        both["properties"] = {**first, **second}
    if "required" in one and "required" in other:
        both["required"] = [*_list(one["required"]), *_list(other["required"])]
    return both


def _referred(reference: object, root: object) -> object:
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise InvalidRequestError(f"the reference {reference!r} does not point into the schema")
    found = root
    for step in filter(None, reference.removeprefix("#").split("/")):
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            raise InvalidRequestError(f"the reference {reference!r} points at nothing")
        found = found[key]
    return found


def _typed(schema: Mapping[str, object], root: object, depth: int) -> object:
    match _type(schema):
        case "object":
            return _object(schema, root, depth)
        case "array":
            return _array(schema, root, depth)
        case "string":
            return _string(schema)
        case "integer":
            return math.ceil(_number(schema, whole=True))
        case "number":
            return _number(schema, whole=False)
        case "boolean":
            return False
        case "null":
            return None
        case other:
            raise InvalidRequestError(f"{other!r} is no JSON schema type")


def _type(schema: Mapping[str, object]) -> object:
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        return kind[0]
    if kind is not None:
        return kind
    if "items" in schema or "prefixItems" in schema:
        return "array"
    if "minimum" in schema or "exclusiveMinimum" in schema or "multipleOf" in schema:
        return "number"
    return "string" if "minLength" in schema or "format" in schema else "object"


def _object(schema: Mapping[str, object], root: object, depth: int) -> dict[str, object]:
    properties = schema.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    rest = schema.get("additionalProperties", True)
    value: dict[str, object] = {}
    for name in _list(schema.get("required")):
        value[str(name)] = _instance(known.get(name, rest or True), root, depth + 1)
    for name in (*known, *(f"key{number}" for number in range(_count(schema, "minProperties")))):
        if len(value) >= _count(schema, "minProperties"):
            break
        value.setdefault(name, _instance(known.get(name, rest or True), root, depth + 1))
    return value


def _array(schema: Mapping[str, object], root: object, depth: int) -> list[object]:
    first = _list(schema.get("prefixItems"))
    items = schema.get("items", True)
    wanted = range(_count(schema, "minItems"))
    return [_instance(first[at] if at < len(first) else items, root, depth + 1) for at in wanted]


def _string(schema: Mapping[str, object]) -> str:
    form = schema.get("format")
    text = _FORMATS.get(form, "") if isinstance(form, str) else ""
    return text.ljust(_count(schema, "minLength"), "x")


def _number(schema: Mapping[str, object], *, whole: bool) -> float:
    """Return the allowed number that is nearest to 0."""
    unit = _bound(schema, "multipleOf") or (1 if whole else None)
    step = unit or 0.5
    low, high = _bound(schema, "minimum"), _bound(schema, "maximum")
    above, below = _bound(schema, "exclusiveMinimum"), _bound(schema, "exclusiveMaximum")
    if low is not None and low > 0:
        value = math.ceil(low / unit) * unit if unit else low
    elif above is not None and above >= 0:
        value = (math.floor(above / step) + 1) * step
    elif high is not None and high < 0:
        value = math.floor(high / unit) * unit if unit else high
    elif below is not None and below <= 0:
        value = (math.ceil(below / step) - 1) * step
    else:
        value = 0
    return value


def _bound(schema: Mapping[str, object], name: str) -> int | float | None:
    bound = schema.get(name)
    if isinstance(bound, int | float) and not isinstance(bound, bool):
        return bound
    return None


def _count(schema: Mapping[str, object], name: str) -> int:
    count = schema.get(name)
    if not isinstance(count, int) or count < 0:
        return 0
    if count > 10_000:
        raise InvalidRequestError(f"{name} of {count} is more than this engine makes up")
    return count


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []

"""Thoughts under both of the names that clients of chat completions read.

vLLM writes `reasoning`, other engines and most clients say `reasoning_content`. Whichever is
there gets its twin, on the level of bytes: answers are long and nothing else changes in them.
"""

import re

_NAMES = (b"reasoning", b"reasoning_content")
_MARK = b'"reasoning'
"""Part of both."""

# In JSON a quote within a string has a backslash before it, so a quote after a brace, a comma or
# a blank opens a string, and one that a colon follows was a key.
_MEMBER = re.compile(
    rb'(?<=[{,\s])"(?P<name>reasoning(?:_content)?)"\s*:\s*'
    rb'(?P<value>"(?:[^"\\]++|\\.)*+"|null)',
    re.DOTALL,
)
_TOKEN = re.compile(_MEMBER.pattern + rb'|"(?:[^"\\]++|\\.)*+"|[{}]', re.DOTALL)


def with_reasoning_alias(data: bytes) -> bytes:
    """Return `data` with a twin beside every `reasoning` or `reasoning_content` that has none.

    Members whose value is a string or null are meant, in whichever object they are; everything
    else stays byte for byte, and an object that has both names is left alone.

    Args:
        data: chat completions as JSON, or whole server-sent events that carry them.
    """
    if _MARK not in data:
        return data
    has_short, has_long = (b'"%b"' % name in data for name in _NAMES)
    if has_short and has_long:
        if data.lstrip()[:1] == b"{":
            return _with_twins_where_missing(data)
        # JSON in an event is one line; what stands in comments beside it is no JSON at all.
        return b"".join(
            _with_twins_where_missing(line) if line.startswith(b"data:") else line
            for line in data.splitlines(keepends=True)
        )
    if has_short or has_long:
        return _MEMBER.sub(_with_twin, data)
    return data


def _with_twin(member: re.Match[bytes]) -> bytes:
    twin = _NAMES[member["name"] == _NAMES[0]]
    return b'%b,"%b":%b' % (member[0], twin, member["value"])


def _with_twins_where_missing(data: bytes) -> bytes:
    """Go from object to object, since some have both names and some have one."""
    pieces: list[bytes] = []
    position = 0
    for member in _lone_members(data):
        pieces += (data[position : member.start()], _with_twin(member))
        position = member.end()
    return b"".join((*pieces, data[position:]))


def _lone_members(data: bytes) -> list[re.Match[bytes]]:
    """Return the members without a twin in their object, in order."""
    lone: list[re.Match[bytes]] = []
    objects: list[list[re.Match[bytes]]] = [[]]
    for token in _TOKEN.finditer(data):
        if token["name"] is not None:
            objects[-1].append(token)
        elif token[0] == b"{":
            objects.append([])
        elif token[0] == b"}" and len(objects) > 1:
            members = objects.pop()
            if len({member["name"] for member in members}) == 1:
                lone += members[:1]
    return sorted(lone, key=re.Match.start)

"""The SSE codec against the WHATWG standard, however the bytes are cut."""

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import UpstreamCutError
from cortex_core.sse import MAX_EVENT_BYTES, SseDecoder, SseEvent, encode_comment, encode_event

line_text = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]))
events = st.builds(
    SseEvent,
    data=st.lists(line_text, min_size=1, max_size=3).map("\n".join),
    event=st.sampled_from(["message", "error", "snapshot"]),
    id=st.none() | st.just("boot-7"),
)


def wire(event: SseEvent, end: str) -> bytes:
    lines = [f"event: {event.event}"] if event.event != "message" else []
    lines += [f"id: {event.id}"] if event.id is not None else []
    lines += [f"data: {line}" for line in event.data.split("\n")]
    return (end.join(lines) + end * 2).encode()


@given(st.lists(events, max_size=4), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_any_split_of_the_bytes_gives_the_same_events(
    sent: list[SseEvent], end: str, data: st.DataObject
) -> None:
    """The standard's (9.2.6): line ends are CRLF, LF or CR, wherever a packet is cut."""
    # A comment follows so that a lone CR at the end is decided.
    raw = b"".join(wire(event, end) for event in sent) + b": end\n"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)))

    decoder = SseDecoder()
    got = [
        event
        for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True)
        for event in decoder.feed(raw[start:stop])
    ]

    assert got == sent


def test_a_crlf_cut_in_two_ends_one_line_only() -> None:
    """The standard's (9.2.6): else the second half would end the event early."""
    decoder = SseDecoder()

    got = [*decoder.feed(b"data: a\r"), *decoder.feed(b"\ndata: b\r\n\r\n")]

    assert got == [SseEvent(data="a\nb")]


def test_comments_unknown_fields_and_events_without_data_are_skipped() -> None:
    """The standard's (9.2.6)."""
    got = SseDecoder().feed(b": hi\n\nretry: 5\nevent: x\n\nfoo: bar\ndata:a\n\n")

    assert got == [SseEvent(data="a")]


def test_a_byte_order_mark_is_skipped_even_when_it_is_cut() -> None:
    """The standard's (9.2.5): one leading U+FEFF is ignored."""
    decoder = SseDecoder()

    got = [e for byte in b"\xef\xbb\xbfdata: a\n\n" for e in decoder.feed(bytes([byte]))]

    assert got == [SseEvent(data="a")]


def test_an_event_without_end_is_bounded() -> None:
    """Ours: a broken upstream cannot fill the gateway's memory."""
    decoder = SseDecoder()
    decoder.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 100))

    with pytest.raises(UpstreamCutError):
        decoder.feed(b"x" * 200)


@given(line_text, st.none() | st.sampled_from(["error", "ping"]))
def test_what_is_encoded_decodes_to_itself(data: str, name: str | None) -> None:
    """Ours."""
    raw = encode_event(data.encode(), event=name, event_id="b-1")

    assert SseDecoder().feed(raw) == [SseEvent(data=data, event=name or "message", id="b-1")]


@given(st.text())
def test_a_comment_never_becomes_an_event(text: str) -> None:
    """Ours: heartbeats carry free text and must stay invisible."""
    raw = encode_comment(text.encode("utf-8", "replace").decode())

    assert SseDecoder().feed(raw + b"data: x\n\n") == [SseEvent(data="x")]

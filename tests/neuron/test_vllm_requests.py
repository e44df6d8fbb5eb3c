"""What is checked of a request before vLLM sees it."""

import types
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Route
from neuron.engines.vllm_requests import AUDIO, IMAGE, VIDEO, check_options, check_request, rank

TEXT = {"type": "text", "text": "hello"}
MEDIA = {
    IMAGE: {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    AUDIO: {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    VIDEO: {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def asked(part: object) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [TEXT, part]},
        ]
    }


@pytest.mark.parametrize("modality", list(MEDIA))
def test_media_that_the_model_does_not_take_are_refused_where_they_stand(modality: str) -> None:
    """Ours: 400 with the path of the part."""
    others = set(MEDIA) - {modality}

    with pytest.raises(InvalidRequestError) as caught:
        check_request(Route.CHAT_COMPLETIONS, asked(MEDIA[modality]), others)

    assert caught.value.param == "messages.1.content.1"
    assert modality in caught.value.message


@pytest.mark.parametrize("modality", list(MEDIA))
def test_media_that_the_model_takes_pass(modality: str) -> None:
    """Ours: the others' absence does not matter."""
    check_request(Route.CHAT_COMPLETIONS, asked(MEDIA[modality]), {modality})


def test_part_without_a_type_is_what_its_field_says() -> None:
    """vLLM 0.32 reads `{"image_url": "..."}` as well."""
    with pytest.raises(InvalidRequestError):
        check_request(
            Route.CHAT_COMPLETIONS, asked({"image_url": "https://example.com/a.png"}), set()
        )


@pytest.mark.parametrize(
    ("best_of", "n", "is_refused"),
    [(1, None, False), (2, None, True), (3, 2, True), (2, 2, False), (None, 2, False)],
)
def test_best_of_is_refused_unless_it_asks_for_nothing_more(
    best_of: int | None, n: int | None, is_refused: bool
) -> None:
    """vLLM 0.32 reads over `best_of`; we drop nothing silently."""
    body = {"prompt": "a", "best_of": best_of, "n": n}

    if is_refused:
        with pytest.raises(InvalidRequestError) as caught:
            check_request(Route.CHAT_COMPLETIONS, body, set())
        assert caught.value.param == "best_of"
    else:
        check_request(Route.CHAT_COMPLETIONS, body, set())


@given(body=st.dictionaries(st.sampled_from(["messages", "n", "best_of"]), json_values))
def test_body_of_whatever_shape_is_no_fault_of_ours(body: dict[str, object]) -> None:
    """Ours: a wrong shape is for vLLM to say; without media and `best_of` all passes."""
    check_request(Route.CHAT_COMPLETIONS, {**body, "best_of": None}, set(MEDIA))


@pytest.mark.parametrize(
    ("body", "has_priorities", "param"),
    [
        ({"guided_json": {}}, False, "guided_json"),
        ({"guided_regex": "a"}, True, "guided_regex"),
        ({"priority": 1}, False, "priority"),
        ({"priority": 1}, True, None),
        ({"priority": 0}, False, None),
        ({"guided_json": None, "priority": None}, False, None),
        (["no object"], False, None),
    ],
)
def test_option_that_would_not_be_heeded_is_refused(
    body: object, has_priorities: bool, param: str | None
) -> None:
    """Ours: an answer that is not as asked is worse than none."""
    if param is None:
        check_options(body, has_priorities=has_priorities)
        return
    with pytest.raises(InvalidRequestError) as refused:
        check_options(body, has_priorities=has_priorities)

    assert refused.value.param == param


class Asked:
    """A request as vLLM has read it."""

    def __init__(self, **fields: int) -> None:
        self.priority = 0
        self.__dict__.update(fields)
        self.model_fields_set = set(fields)


@given(st.lists(st.integers(-1, 1), min_size=2, max_size=2))
def test_who_is_more_urgent_has_the_lower_number(urgencies: list[int]) -> None:
    """vLLM: "lower means earlier handling; default: 0"."""
    first, second = Asked(), Asked()
    for request, urgency in zip((first, second), urgencies, strict=True):
        rank(request, urgency)

    assert (first.priority < second.priority) == (urgencies[0] > urgencies[1])
    assert (first.priority == 0) == (urgencies[0] == 0)


@given(st.integers(-9, 9), st.integers(-1, 1))
def test_what_the_body_says_of_its_priority_stays(said: int, urgency: int) -> None:
    """Ours: it says more exactly where the request belongs, 0 too."""
    request = Asked(priority=said)

    rank(request, urgency)

    assert request.priority == said


def test_request_without_a_priority_is_left_as_it_is() -> None:
    """Ours: counting tokens is nothing that a scheduler sees."""
    request = types.SimpleNamespace(model_fields_set=set())

    rank(request, 1)

    assert vars(request) == {"model_fields_set": set()}

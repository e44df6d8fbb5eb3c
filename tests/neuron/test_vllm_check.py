"""The known answer of a real engine: what counts as broken, and what is only rounding."""

import json
import math

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.harness import Capabilities, Route
from neuron.engines.vllm_check import Said, Spoken, Vector, flaw, question, read_answer

SPOKEN = Spoken(
    tokens=(" 10", " 11", " 12"),
    logprobs=(-0.1, -0.2, -0.69),
    runners_up=({" 10": -0.1}, {" 11": -0.2, " 13": -1.9}, {" 12": -0.69, " 14": -0.70}),
)
VECTOR = Vector(values=(0.6, 0.8, 0.0))

numbers = st.floats(-5, 0, allow_nan=False)


def _spoken(*tokens: str, logprobs: tuple[float | None, ...] = (-0.1, -0.2, -0.69)) -> Spoken:
    return Spoken(tokens=tokens, logprobs=logprobs)


@pytest.mark.parametrize("said", [SPOKEN, VECTOR])
def test_the_same_answer_is_right(said: Said) -> None:
    """Ours: for the first time, and again."""
    assert flaw(said, None) is None
    assert flaw(said, said) is None


@pytest.mark.parametrize(
    "said",
    [
        Spoken(tokens=(), logprobs=()),
        Vector(values=()),
        _spoken("!", "!", "!", logprobs=(-0.1, None, -0.1)),
        _spoken("!", "!", "!", logprobs=(math.nan, -0.1, -0.1)),
        Vector(values=(0.5, math.inf)),
        Vector(values=(0.5, None)),
    ],
)
def test_nothing_and_no_numbers_are_wrong_at_once(said: Said) -> None:
    """Ours: broken weights mostly compute what is not a number."""
    assert flaw(said, None) is not None


@pytest.mark.parametrize(
    ("said", "before"),
    [
        (_spoken(" 10", " 99", " 12"), SPOKEN),
        (_spoken(" 10", " 13", " 12"), SPOKEN),
        (_spoken(" 10", " 11"), SPOKEN),
        (_spoken(" 10", " 11", " 12", logprobs=(-2.0, -0.2, -0.69)), SPOKEN),
        (Vector(values=(0.8, 0.6, 0.0)), VECTOR),
        (Vector(values=(0.6, 0.8)), VECTOR),
        (VECTOR, SPOKEN),
        (SPOKEN, VECTOR),
    ],
)
def test_another_answer_than_before_the_sleep_is_wrong(said: Said, before: Said) -> None:
    """Ours: other tokens, other likelihoods, another direction."""
    assert flaw(said, before) is not None


@pytest.mark.parametrize(
    ("said", "before"),
    [
        (_spoken(" 10", " 11", " 14"), SPOKEN),
        (_spoken(" 10", " 11", " 12", logprobs=(-0.15, -0.25, -0.60)), SPOKEN),
        (Vector(values=(0.601, 0.799, 0.001)), VECTOR),
    ],
)
def test_rounding_is_not_an_error(said: Said, before: Said) -> None:
    """Ours: two tokens that are as likely as each other may change places."""
    assert flaw(said, before) is None


@given(st.lists(numbers, min_size=1, max_size=8), st.integers(0, 7))
def test_one_number_that_is_none_spoils_the_answer(values: list[float], place: int) -> None:
    """Ours: wherever it is, and whatever was said before."""
    spoilt: list[float | None] = list(values)
    spoilt[place % len(values)] = None

    assert flaw(Vector(values=tuple(spoilt)), Vector(values=tuple(values))) is not None


def test_question_goes_by_what_the_model_can_do() -> None:
    """Ours: completions before vectors, vectors before scores."""
    generates = question("m", Capabilities(completions=True, embeddings=True))
    embeds = question("m", Capabilities(embeddings=True))

    assert generates is not None
    assert generates[0] is Route.COMPLETIONS
    assert json.loads(generates[1])["temperature"] == 0
    assert embeds is not None
    assert embeds[0] is Route.EMBEDDINGS
    scores = question("m", Capabilities(scoring=True))
    assert scores is not None
    assert scores[0] is Route.SCORE
    assert question("m", Capabilities()) is None


@pytest.mark.parametrize(("most", "asked"), [(-1, 2), (20, 2), (1, 1), (0, None)])
def test_no_more_log_probabilities_are_asked_for_than_the_engine_gives(
    most: int, asked: int | None
) -> None:
    """vLLM's `max_logprobs`: one more is a 400."""
    asking = question("m", Capabilities(completions=True), most)

    assert asking is not None
    assert json.loads(asking[1]).get("logprobs") == asked


def test_text_alone_is_compared_where_there_are_no_log_probabilities() -> None:
    """Ours: better than nothing."""
    one, other = (
        read_answer(Route.COMPLETIONS, json.dumps({"choices": [{"text": text}]}).encode())
        for text in (" 10 11", " !!!!")
    )

    assert flaw(one, None) is flaw(one, one) is None
    assert flaw(other, one) is not None
    empty = read_answer(Route.COMPLETIONS, b'{"choices": [{"text": "", "logprobs": null}]}')
    assert flaw(empty, None) is not None


def test_answers_are_read_as_vllm_writes_them() -> None:
    """OpenAI's shapes; what vLLM cannot write as a number is null."""
    completion = {
        "choices": [
            {
                "text": " 10",
                "logprobs": {
                    "tokens": [" 10"],
                    "token_logprobs": [None],
                    "top_logprobs": [{" 10": -0.5}],
                },
            }
        ]
    }
    vector = {"data": [{"embedding": [0.5, 0.25], "index": 0}]}

    spoken = read_answer(Route.COMPLETIONS, json.dumps(completion).encode())

    assert spoken == Spoken(tokens=(" 10",), logprobs=(None,), runners_up=({" 10": -0.5},))
    assert read_answer(Route.EMBEDDINGS, json.dumps(vector).encode()) == Vector(values=(0.5, 0.25))
    scores = b'{"data": [{"index": 0, "score": 0.5}, {"index": 1, "score": null}]}'
    assert read_answer(Route.SCORE, scores) == Vector(values=(0.5, None))
    with pytest.raises(msgspec.DecodeError):
        read_answer(Route.COMPLETIONS, b'{"choices": [{"logprobs": {"token_logprobs": [NaN]}}]}')

"""A LangChain program: a model, one tool that writes a file, and the loop between them.

Run as `langchain_session.py anthropic|openai|responses URL MODEL PROMPT`; prints what is said last.
"""

import sys
from pathlib import Path

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

MOST_ROUNDS = 4


def write_file(path: str, content: str) -> str:
    """Write a file."""
    Path(path).write_text(content)
    return "ok"


def model_of(dialect: str, url: str, model: str) -> BaseChatModel:
    if dialect == "anthropic":
        return ChatAnthropic(model=model, base_url=url, api_key=SecretStr("k"), max_retries=0)
    return ChatOpenAI(
        model=model,
        base_url=f"{url}/v1",
        api_key=SecretStr("k"),
        max_retries=0,
        use_responses_api=dialect == "responses",
    )


def main(dialect: str, url: str, model: str, prompt: str) -> None:
    writer = tool(write_file)
    chat = model_of(dialect, url, model).bind_tools([writer])
    messages: list[BaseMessage] = [HumanMessage(prompt)]
    for _ in range(MOST_ROUNDS):
        answer = None
        for chunk in chat.stream(messages):
            answer = chunk if answer is None else answer + chunk
        assert answer is not None
        messages.append(answer)
        if not answer.tool_calls:
            print(answer.text)
            return
        messages += [
            ToolMessage(writer.invoke(call["args"]), tool_call_id=call["id"])
            for call in answer.tool_calls
        ]
    raise SystemExit("the model called tools without an end")


if __name__ == "__main__":
    main(*sys.argv[1:])

// OpenAI's SDK for JavaScript against a gateway with the real engine: `node openai.mjs`.
// Wants BASE_URL, and AGENTS_FOLDER, the folder whose node_modules has the SDK.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";

const require = createRequire(`${process.env.AGENTS_FOLDER}/`);
const OpenAI = require("openai");

const client = new OpenAI({
  baseURL: `${process.env.BASE_URL}/v1`, apiKey: "unused", maxRetries: 0,
});
const model = "cortex/tiny";
const embedder = "cortex/tiny-embed";
const hello = [{ role: "user", content: "Hello" }];
const greeting = "Hello! How can I help you today?";
const question = { role: "user", content: "What is the weather in Paris?" };
const parameters = {
  type: "object",
  properties: { city: { type: "string", description: "City name" } },
  required: ["city"],
};
const description = "Get the current weather in a city";
const weather = { type: "function", function: { name: "get_weather", description, parameters } };

test("a chat completion, whole", async () => {
  const answer = await client.chat.completions.create({ model, messages: hello });
  assert.equal(answer.choices[0].message.content, greeting);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.ok(answer.usage.completion_tokens > 0);
});

test("a chat completion, as a stream with usage", async () => {
  const stream = client.chat.completions.stream({
    model, messages: hello, stream_options: { include_usage: true },
  });
  const pieces = [];
  stream.on("content", (piece) => pieces.push(piece));
  const answer = await stream.finalChatCompletion();
  assert.equal(pieces.join(""), greeting);
  assert.equal(answer.choices[0].message.content, greeting);
  assert.ok((await stream.totalUsage()).completion_tokens > 0);
});

const named = { type: "function", function: { name: "get_weather" } };
for (const choice of ["auto", "required", named]) {
  test(`a tool, chosen by ${JSON.stringify(choice)}`, async () => {
    const stream = client.chat.completions.stream({
      model, messages: [question], tools: [weather], tool_choice: choice,
    });
    const answer = await stream.finalChatCompletion();
    const [call] = answer.choices[0].message.tool_calls;
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
  });
}

test("the loop of a runner", async () => {
  const runner = client.chat.completions.runTools({
    model, messages: [question],
    tools: [{
      type: "function",
      function: { ...weather.function, parse: JSON.parse, function: () => "sunny, 20 C" },
    }],
  });
  assert.equal(await runner.finalContent(), "The weather in Paris: sunny, 20 C.");
});

test("reasoning", async () => {
  const answer = await client.chat.completions.create({
    model, messages: hello, reasoning_effort: "medium",
  });
  const { message } = answer.choices[0];
  assert.ok(message.reasoning_content.length > 0);
  // Engines leave the blank lines after the thoughts, and chat gets what the engine said.
  assert.equal(message.content.trimStart(), greeting);
});

test("stop and structured output", async () => {
  const cut = await client.chat.completions.create({ model, messages: hello, stop: ["help"] });
  assert.equal(cut.choices[0].message.content, "Hello! How can I ");
  const schema = {
    type: "object",
    properties: { city: { type: "string", maxLength: 10 } },
    required: ["city"],
    additionalProperties: false,
  };
  const formed = await client.chat.completions.create({
    model, messages: [question],
    response_format: { type: "json_schema", json_schema: { name: "city", schema } },
  });
  assert.equal(typeof JSON.parse(formed.choices[0].message.content).city, "string");
});

test("a completion", async () => {
  const answer = await client.completions.create({ model, prompt: "Hello", max_tokens: 4 });
  assert.equal(answer.object, "text_completion");
  assert.equal(answer.usage.completion_tokens, 4);
});

test("embeddings, which the SDK asks for in base64", async () => {
  const answer = await client.embeddings.create({ model: embedder, input: ["a cat", "a dog"] });
  const plain = await client.embeddings.create({
    model: embedder, input: "a cat", encoding_format: "float",
  });
  assert.equal(answer.data.length, 2);
  const [first] = answer.data;
  assert.equal(first.embedding.length, plain.data[0].embedding.length);
  first.embedding.forEach((value, at) => {
    assert.ok(Math.abs(value - plain.data[0].embedding[at]) < 1e-2);
  });
});

test("a response, whole and as a stream", async () => {
  const response = await client.responses.create({ model, input: "Hello" });
  assert.equal(response.output_text, greeting);
  const stream = client.responses.stream({ model, input: "Hello" });
  const pieces = [];
  stream.on("response.output_text.delta", (event) => pieces.push(event.delta));
  const final = await stream.finalResponse();
  assert.equal(pieces.join(""), greeting);
  assert.equal(final.output_text, greeting);
  assert.equal(final.status, "completed");
});

test("a function in a response, and the conversation after it", async () => {
  const tools = [{ type: "function", name: "get_weather", description, parameters, strict: null }];
  const first = await client.responses.create({ model, input: question.content, tools });
  const call = first.output.find((item) => item.type === "function_call");
  assert.deepEqual(JSON.parse(call.arguments), { city: "Paris" });
  const second = await client.responses.create({
    model, tools, previous_response_id: first.id,
    input: [{ type: "function_call_output", call_id: call.call_id, output: "sunny, 20 C" }],
  });
  assert.equal(second.output_text, "The weather in Paris: sunny, 20 C.");
  assert.equal((await client.responses.retrieve(second.id)).id, second.id);
  await client.responses.delete(second.id);
  await assert.rejects(client.responses.retrieve(second.id), OpenAI.NotFoundError);
});

test("models and errors", async () => {
  const { data } = await client.models.list();
  assert.ok(data.some((entry) => entry.id === model));
  const asked = { model: "nobody/none", messages: hello };
  await assert.rejects(
    client.chat.completions.create(asked),
    (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
  );
});

// Anthropic's SDK for JavaScript against a gateway with the real engine: `node anthropic.mjs`.
// Wants BASE_URL, and AGENTS_FOLDER, the folder whose node_modules has the SDK.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";

const require = createRequire(`${process.env.AGENTS_FOLDER}/`);
const Anthropic = require("@anthropic-ai/sdk");

const client = new Anthropic({ baseURL: process.env.BASE_URL, apiKey: "unused", maxRetries: 0 });
const model = "cortex/tiny";
const hello = [{ role: "user", content: "Hello" }];
const greeting = "Hello! How can I help you today?";
const question = { role: "user", content: "What is the weather in Paris?" };
const weather = {
  name: "get_weather",
  description: "Get the current weather in a city",
  input_schema: {
    type: "object",
    properties: { city: { type: "string", description: "City name" } },
    required: ["city"],
  },
};
const textOf = (message) =>
  message.content.filter((block) => block.type === "text").map((block) => block.text).join("");

test("a message, whole", async () => {
  const message = await client.messages.create({ model, max_tokens: 64, messages: hello });
  assert.equal(textOf(message), greeting);
  assert.equal(message.stop_reason, "end_turn");
  assert.ok(message.usage.input_tokens > 0 && message.usage.output_tokens > 0);
  assert.match(message._request_id, /^req_/);
});

test("a message, as a stream", async () => {
  const stream = client.messages.stream({ model, max_tokens: 64, messages: hello });
  const pieces = [];
  stream.on("text", (piece) => pieces.push(piece));
  const message = await stream.finalMessage();
  assert.ok(pieces.length > 1);
  assert.equal(pieces.join(""), greeting);
  assert.equal(textOf(message), greeting);
  assert.ok(message.usage.input_tokens > 0 && message.usage.output_tokens > 0);
});

for (const type of ["auto", "any", "tool"]) {
  test(`a tool, chosen by ${type}`, async () => {
    const choice = type === "tool" ? { type, name: "get_weather" } : { type };
    const stream = client.messages.stream({
      model, max_tokens: 128, messages: [question], tools: [weather], tool_choice: choice,
    });
    const inputs = [];
    stream.on("inputJson", (piece) => inputs.push(piece));
    const message = await stream.finalMessage();
    const call = message.content.find((block) => block.type === "tool_use");
    assert.deepEqual(call.input, { city: "Paris" });
    assert.deepEqual(JSON.parse(inputs.join("")), { city: "Paris" });
    assert.equal(message.stop_reason, "tool_use");
  });
}

test("the result of a tool", async () => {
  const use = { type: "tool_use", id: "toolu_1", name: "get_weather", input: { city: "Paris" } };
  const result = { type: "tool_result", tool_use_id: "toolu_1", content: "sunny, 20 C" };
  const message = await client.messages.create({
    model, max_tokens: 64, tools: [weather],
    messages: [
      question, { role: "assistant", content: [use] }, { role: "user", content: [result] },
    ],
  });
  assert.equal(textOf(message), "The weather in Paris: sunny, 20 C.");
});

test("thinking", async () => {
  const stream = client.messages.stream({
    model, max_tokens: 2048, messages: hello, thinking: { type: "enabled", budget_tokens: 1024 },
  });
  const message = await stream.finalMessage();
  const [thought] = message.content;
  assert.equal(thought.type, "thinking");
  assert.ok(thought.thinking.length > 0 && thought.signature.length > 0);
  // The template writes blank lines after the thoughts, and they are the model's own.
  assert.equal(textOf(message).trimStart(), greeting);
});

test("a stop sequence", async () => {
  const message = await client.messages.create({
    model, max_tokens: 64, messages: hello, stop_sequences: ["help"],
  });
  assert.equal(message.stop_reason, "stop_sequence");
  assert.equal(message.stop_sequence, "help");
});

test("structured output", async () => {
  const schema = {
    type: "object",
    properties: { city: { type: "string", maxLength: 10 } },
    required: ["city"],
    additionalProperties: false,
  };
  const message = await client.messages.create({
    model, max_tokens: 128, messages: [question],
    output_config: { format: { type: "json_schema", schema } },
  });
  assert.equal(typeof JSON.parse(textOf(message)).city, "string");
});

test("counting", async () => {
  const asked = { model, messages: [question], tools: [weather], system: "Be brief." };
  const { input_tokens: counted } = await client.messages.countTokens(asked);
  const { usage } = await client.messages.create({ ...asked, max_tokens: 4 });
  assert.equal(counted, usage.input_tokens + usage.cache_read_input_tokens);
});

test("models", async () => {
  const { data } = await client.models.list();
  assert.ok(data.some((entry) => entry.id === model && entry.type === "model"));
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("errors", async () => {
  const asked = { model: "nobody/none", max_tokens: 4, messages: hello };
  await assert.rejects(client.messages.create(asked), Anthropic.NotFoundError);
  const wrong = { model, max_tokens: 4, messages: [] };
  await assert.rejects(client.messages.create(wrong), Anthropic.BadRequestError);
});

test("a caller that leaves", async () => {
  const story = [{ role: "user", content: "Tell me a long story" }];
  const stream = await client.messages.create({
    model, max_tokens: 1024, messages: story, stream: true,
  });
  for await (const event of stream) {
    if (event.type === "content_block_delta") break;
  }
  assert.ok(stream.controller.signal.aborted);
});

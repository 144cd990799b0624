// One answer whole and one as a stream, by the JavaScript `openai` package; what came is printed as JSON.
// usage: node openai_round_trip.mjs FOLDER_WITH_NODE_MODULES BASE_URL MODEL
import { createRequire } from "node:module";

const [folder, baseURL, model] = process.argv.slice(2);
const { OpenAI } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "grüß dich" }];

const whole = await client.chat.completions.create({ model, messages });
const stream = await client.chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } });
const pieces = [];
let usage = null;
for await (const chunk of stream) {
  pieces.push(...chunk.choices.map((choice) => choice.delta.content ?? ""));
  usage = chunk.usage ?? usage;
}
const refused = await client.chat.completions.create({ model, messages, temperature: 3 }).catch((error) => error);
const error = { status: refused.status, param: refused.param, code: refused.code };
console.log(JSON.stringify({ whole: whole.choices[0].message.content, streamed: pieces.join(""), usage, error }));

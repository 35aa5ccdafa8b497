// The page: a question goes to this server, its answer comes back as a stream of steps and of nodes of the tree.
//
// What the model wrote only ever becomes text or what caspoText (render.js) makes of it, never markup.

import { listModels, ServerError, streamChat } from "./stream.js";
import { confidenceColour, el, fixed, ReasoningTree } from "./tree.js";

const $ = (id) => document.getElementById(id);
const form = $("ask-form");
const fields = [...$("settings").querySelectorAll("[name]")];
const KEPT = "caspo-key";

let key = sessionStorage.getItem(KEPT);
let running = null; // {controller, started, ...} while an answer is under way
let last = null; // what was asked last and what came of it, for the copies
let pending = ""; // a question that waits for a key

const tree = new ReasoningTree($("tree"), showCounts);
tree.told = (text) => say(text);

// Asking

async function ask(question) {
  const run = (running = { controller: new AbortController(), started: performance.now(), steps: [], refusal: "", end: null });
  const body = { model: modelName(), messages: [{ role: "user", content: question }], ...settings() };
  last = { body, run };
  pending = question;
  tree.clear(question);
  begin();
  try {
    if (!body.model) body.model = await loadModels();
    await streamChat(
      { ...body, stream: true, stream_options: { include_usage: true }, caspo: { ...body.caspo, events: true, tree: true } },
      { key, signal: run.controller.signal, onChunk: (chunk) => take(chunk, run) },
    );
    await finish(run);
  } catch (error) {
    fail(error, run);
  } finally {
    clearInterval(run.ticking);
    running = null;
    toggleRunning(false);
  }
}

function take(chunk, run) {
  const choice = chunk.choices?.[0];
  if (!choice) return; // the usage
  const { content, reasoning_content: thought, refusal } = choice.delta ?? {};
  const { step, nodes, ...rest } = choice.caspo ?? {};
  if (nodes) tree.grow(nodes);
  if (refusal) run.refusal += refusal;
  if (step && (content || thought)) {
    const text = (thought ?? "") + (content ?? "");
    run.steps.push({ text, confidence: step.confidence, thinking: step.thinking });
    tree.settle(text);
    const kind = step.thinking ? "Thinking, step" : "Step";
    $("heard").append(el("p", {}, `${kind} ${run.steps.length}, confidence ${fixed(step.confidence)}: ${text}`));
    while ($("heard").childElementCount > 20) $("heard").firstElementChild.remove();
  }
  if (choice.finish_reason) {
    run.finish = choice.finish_reason;
    run.end = rest;
    run.seconds = (performance.now() - run.started) / 1000;
  }
}

async function finish(run) {
  const end = run.end;
  if (!end) throw new ServerError("The answer ended without its last part. Ask again.");
  clearInterval(run.ticking);
  const steps = end.steps ?? run.steps;
  // A method that tells nothing of its growth still has a tree at the end, or at least the steps of its answer.
  const chain = steps.map((step, i) => ({ id: i, parent: i - 1, depth: i + 1, ...step, decision: "expanded" }));
  const nodes = end.tree?.nodes ?? [];
  tree.grow(nodes.length || !tree.empty ? nodes : chain);
  await tree.finish(steps.map((step) => step.text));
  showResult(run, end);
}

function fail(error, run) {
  const stopped = run.controller.signal.aborted;
  if (!stopped && !(error instanceof ServerError)) console.error(error);
  state(stopped ? "Stopped" : "No answer", stopped ? "stopped" : "failed");
  let reason = stopped ? "What had grown by then is kept." : error.message;
  if (error.status === 401) {
    reason = key ? "The server refused this key." : "This server wants a key.";
    key = null;
    sessionStorage.removeItem(KEPT);
    showKeyForm();
  } else if (error.status === 429) {
    reason = `The server is busy. ${error.retryAfter === null ? "Try again in a moment." : `Try again in ${seconds(error.retryAfter)}.`}`;
  }
  $("reason").textContent = reason;
  $("facts").textContent = "";
  say(`${$("state").textContent}. ${reason}`);
}

// What is shown

function begin() {
  $("result").hidden = false;
  $("examples").hidden = true;
  $("empty").hidden = true;
  $("sure").hidden = $("copies").hidden = $("copied").hidden = true;
  for (const id of ["reason", "facts"]) $(id).textContent = "";
  caspoText.showAnswer($("answer"), "");
  $("heard").replaceChildren();
  state("Thinking", "running");
  say("Thinking.");
  const run = running;
  const tick = () => ($("facts").textContent = `${fixed((performance.now() - run.started) / 1000, 1)} s`);
  tick();
  run.ticking = setInterval(tick, 100);
  toggleRunning(true);
}

function showResult(run, end) {
  const answered = end.answer !== null && end.answer !== undefined;
  const answer = end.abstained ? "I would rather not say." : answered ? String(end.answer) : "No final answer";
  state(end.abstained ? "Abstained" : answered ? "Answer" : "Done", end.abstained || !answered ? "abstained" : "answered");
  caspoText.showAnswer($("answer"), answer);
  $("sure").hidden = !Number.isFinite(end.confidence);
  const [background] = confidenceColour(end.confidence);
  $("meter").style.setProperty("--c", background);
  $("meter").style.setProperty("--share", end.confidence);
  $("meter").setAttribute("aria-valuenow", fixed(end.confidence));
  $("confidence").textContent = `${fixed(end.confidence)} confidence`;
  let reason = "";
  if (end.abstained) reason = run.refusal || "The model is not confident enough, and says so instead of guessing.";
  else if (!answered) reason = "The steps state no answer. More tokens or more paths may help.";
  if (run.finish === "length") reason += " A path reached its limit of tokens before it ended.";
  $("reason").textContent = reason.trim();
  $("facts").textContent = [
    `${end.generated_tokens ?? "?"} tokens`, `${fixed(run.seconds, 1)} s`, end.method,
  ].filter(Boolean).join(" · ");
  $("copies").hidden = false;
  last.text = (end.steps ?? run.steps).filter((step) => !step.thinking).map((step) => step.text).join("");
  $("copies").querySelector("[data-copy=text]").hidden = !last.text;
  say(`${$("state").textContent}: ${answer} Confidence ${fixed(end.confidence)}. ${$("reason").textContent}`);
}

function state(text, name) {
  $("state").textContent = text;
  $("result").dataset.state = name;
}

function say(text) {
  $("status").textContent = text;
}

function showCounts() {
  const { steps, pruned, finished } = tree.counts();
  const parts = [`${steps} ${steps === 1 ? "step" : "steps"}`];
  if (finished) parts.push(`${finished} finished`);
  if (pruned) parts.push(`${pruned} pruned`);
  $("counts").textContent = steps ? parts.join(" · ") : "";
}

function toggleRunning(on) {
  const had = document.activeElement;
  $("ask").hidden = on;
  $("stop").hidden = !on;
  $("tree").setAttribute("aria-busy", on);
  $("tree").classList.toggle("growing", on);
  if (had === $("ask") && on) $("stop").focus();
  if (had === $("stop") && !on) $("ask").focus();
}

const seconds = (n) => (n === 1 ? "1 second" : n < 120 ? `${n} seconds` : `${Math.ceil(n / 60)} minutes`);

// Settings: a field that is empty is not sent

const changed = () => fields.filter((field) => field.name !== "model" && !field.disabled && field.value !== "");

function settings() {
  const caspo = Object.fromEntries(changed().map((f) => [f.name, f.type === "number" ? f.valueAsNumber : f.value]));
  const { max_tokens, ...rest } = caspo;
  return { ...(max_tokens === undefined ? {} : { max_tokens }), ...(Object.keys(rest).length ? { caspo: rest } : {}) };
}

function settingsChanged() {
  const method = form.elements.method.value;
  for (const field of fields) {
    if (field.dataset.for) field.disabled = method !== "" && !field.dataset.for.split(" ").includes(method);
  }
  const n = changed().length;
  $("changed").textContent = n ? `(${n} changed)` : "";
}

const modelName = () => form.elements.model.value;

/** Ask the server for its models and offer the choice; the name of the first. */
async function loadModels() {
  const names = await listModels(key);
  if (!names.length) throw new ServerError("The server names no model that it serves.");
  form.elements.model.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  $("model-field").hidden = names.length < 2;
  $("model").textContent = names.length === 1 ? names[0] : `${names.length} models`;
  return names[0];
}

/** Show the model's name before anything is asked; what goes wrong here is said when a question is. */
const greet = () => loadModels().catch((error) => error.status === 401 && showKeyForm());

// The key: in memory, or in this tab's storage if the reader wants it so; never in an address

function showKeyForm() {
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  if ($("keep-key").checked) sessionStorage.setItem(KEPT, key);
  else sessionStorage.removeItem(KEPT);
  $("key").value = "";
  $("key-form").hidden = true;
  $("question").focus();
  if (pending && !running) ask(pending);
  else greet();
});

// Copies: the request as others would send it, with the key left to the environment

function copy(kind) {
  const json = JSON.stringify(last.body, null, 2);
  const base = new URL("v1", document.baseURI).href;
  const { caspo, ...plain } = last.body;
  const curl = [
    `curl ${base}/chat/completions`,
    "-H 'Content-Type: application/json'",
    ...(key ? ['-H "Authorization: Bearer $CASPO_API_KEY"'] : []),
    `-d '${json.replaceAll("'", String.raw`'\''`)}'`,
  ];
  const python = [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=os.environ.get("CASPO_API_KEY", "none"))`,
    "completion = client.chat.completions.create(",
    ...Object.entries(plain).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`),
    ...(caspo ? [`    extra_body={"caspo": ${JSON.stringify(caspo)}},`] : []),
    ")",
    "print(completion.choices[0].message.content)",
    "print(completion.choices[0].caspo)",
  ];
  const text = { curl: curl.join(" \\\n  "), python: python.join("\n"), text: last.text }[kind];
  $("copied").hidden = false;
  $("copied").value = text;
  $("copied").select();
  const byHand = () => say("Selected. Press Control C to copy.");
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => say("Copied."), byHand);
  else byHand(); // a page that is not from this machine and not over HTTPS may not write to the clipboard
}

// Wiring

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (question && !running) ask(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.controller.abort();
});
$("settings").addEventListener("input", settingsChanged);
$("settings").addEventListener("invalid", () => ($("settings").open = true), true); // what is folded away cannot be pointed at
$("stop").addEventListener("click", () => running?.controller.abort());
$("defaults").addEventListener("click", () => {
  for (const field of fields) if (field.name !== "model") field.value = "";
  settingsChanged();
});
for (const button of $("examples").querySelectorAll("button")) {
  button.addEventListener("click", () => {
    $("question").value = button.textContent;
    $("question").focus();
    form.requestSubmit();
  });
}
for (const button of $("copies").querySelectorAll("button")) button.addEventListener("click", () => copy(button.dataset.copy));
caspoText.switchBy($("written"));
tree.showLegend($("legend"));
settingsChanged();
greet();

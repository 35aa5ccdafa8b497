// Server-sent events from a fetch. `EventSource` cannot POST, so the stream is read and cut into events here.

/** What went wrong, in words for the reader; `status` is that of HTTP, 0 where there was no answer at all. */
export class ServerError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

/** Cuts text into the data of events, wherever the chunks happen to end. Lines may end in LF, CRLF or CR. */
export class EventCutter {
  #rest = "";
  #data = [];

  push(text) {
    const found = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/); // a CR at the very end may be half of a CRLF
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) found.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return found;
  }
}

/** POST a chat completion and call `onChunk` with each chunk; returns when the server has said that it is done. */
export async function streamChat(body, { key, signal, onChunk }) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream", ...authorization(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!(response.headers.get("Content-Type") ?? "").startsWith("text/event-stream")) {
    throw new ServerError("The server answered, but not with a stream. Is something between it and this page?");
  }
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const cutter = new EventCutter();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(lost(signal));
      for (const data of cutter.push(done ? decoder.decode() : decoder.decode(value, { stream: true }))) {
        if (data === "[DONE]") return;
        const chunk = parse(data);
        if (chunk.error) throw new ServerError(chunk.error.message ?? "The server gave no reason.");
        onChunk(chunk);
      }
      if (done) throw new ServerError("The connection ended before the answer was complete. Ask again.");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The names of the models that are served. */
export async function listModels(key) {
  const response = await ask("v1/models", { headers: authorization(key) });
  const listed = await response.json().catch(() => null);
  return (listed?.data ?? []).map((model) => String(model.id));
}

const authorization = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function ask(path, options) {
  const response = await fetch(path, { ...options, cache: "no-store", credentials: "same-origin" }).catch(lost(options.signal));
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `The server answered with ${response.status} ${response.statusText}.`;
  throw new ServerError(String(message), response.status, seconds(response.headers.get("Retry-After")));
}

/** An abort stays what it is; everything else that `fetch` rejects with is a lost connection. */
function lost(signal) {
  return (error) => {
    if (signal?.aborted) throw error;
    throw new ServerError("The connection to the server was lost. Is it still running? Ask again when it is.");
  };
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ServerError("The server sent something that is not JSON. Ask again; if it stays so, it is a bug.");
  }
}

/** Retry-After is a number of seconds or a date. */
function seconds(text) {
  if (!text) return null;
  const wait = /^\d+$/.test(text.trim()) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(wait) ? Math.max(0, Math.ceil(wait)) : null;
}

"""CaT behind the OpenAI API: many users, one engine.

A request passes these stations, each a file (`app` leads it from one to the next):

1. `guard`: who may call, and how large a body may be.
2. `request_schema`: the fields of a body, checked strictly.
3. `plan`: what the body comes to, a method within the server's limits and its prompts; a `Job` for each choice.
4. `scheduler`: all jobs' searches (`search`) share one batch; a job's `Ticket` tells what happens in it (`job`).
5. `respond`: submits the jobs, listens to their tickets, and sends one answer or a stream.
6. `compose`, `forms`: from these events to what a choice says, and to the JSON that OpenAI's clients know.
7. `response_schema`: that JSON's only description; `openapi` publishes it, with `request_schema`.

Beside them: `settings`, `server` (sockets and signals), `thread` (the engine's), `metrics`, `errors`, and `static`, which
sends the page that lies in ``page/``.
"""

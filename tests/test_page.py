"""The page at `/`: fixed files with strict headers, and in a real browser a tree that grows, safely and by keyboard."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from browser import chromium
from caspo import render
from caspo.search import METHODS
from caspo.serve import static as served
from page_server import ANSWER, HOSTILE, KEY, MARKED, TREE, Fake, serving

NAMES = ["index.html", "page.css", "page.js", "tree.js", "stream.js"]
OURS = [*NAMES, "render.js", "render.css"]
ROUTES = ["/", "/page.css", "/page.js", "/tree.js", "/stream.js", "/render.js", "/render.css"]
QUESTION = "How many pears does Mia have?"
DESKTOP = {"width": 1280, "height": 800}


def content(name: str) -> str:
    if name not in NAMES:
        return render.asset(name)
    return resources.files("caspo.serve").joinpath("page", name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(served.router)
    return TestClient(app)


# Without a browser


@pytest.mark.parametrize(("route", "name"), zip(ROUTES, OURS, strict=True))
def test_each_route_sends_its_file_with_the_strict_headers(client: TestClient, route: str, name: str) -> None:
    answer = client.get(route)
    assert answer.status_code == 200
    assert answer.text == content(name)
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[name.rpartition(".")[2]]
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    head = client.head(route)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == answer.headers
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in answer.headers


def test_an_unchanged_file_is_not_sent_again(client: TestClient) -> None:
    tag = client.get("/page.js").headers["etag"]
    again = client.get("/page.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag
    assert "content-security-policy" in again.headers
    assert client.get("/page.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/index.html",
        "/../page.py",
        "/page.css/../../page.py",
        "/%2e%2e/page.py",
        "/page.py",
        "/page.js%00",
        "/..%2fpage.py",
    ],
)
def test_no_other_path_leads_to_a_file(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_is_no_part_of_the_described_api(client: TestClient) -> None:
    assert client.get("/openapi.json").json()["paths"] == {}


@pytest.mark.parametrize("name", OURS)
def test_no_file_names_another_host(name: str) -> None:
    text = content(name).replace("http://www.w3.org/2000/svg", "")  # the name of a namespace, not an address
    assert not re.search(r"https?:|url\(|@import|(?:src|href)=[\"']?//", text)


@pytest.mark.parametrize("name", OURS)
def test_no_file_makes_markup_or_code_of_text(name: str) -> None:
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser"
    code = r"\beval\b|new Function|\son[a-z]+=|javascript:|\sstyle="
    assert not re.search(f"{markup}|{code}", content(name))


def test_the_settings_offered_are_those_that_the_methods_have() -> None:
    html = content("index.html")
    methods = re.findall(r'<option value="(\w+)">', html)
    assert methods == [*dict.fromkeys(methods)]
    assert set(methods) == set(METHODS)
    fields = dict(re.findall(r'<input name="(\w+)" data-for="([\w ]+)"', html))
    for field, names in fields.items():
        assert set(names.split()) == {n for n, m in METHODS.items() if field in m.settings_type.model_fields}, field
    assert {"level", "paths", "children", "budget", "prune_below", "abstain_below"} <= set(fields)


def test_the_files_go_into_the_wheel() -> None:
    """All of `src/caspo` does, unless an ignore rule names a file of it."""
    root = Path(__file__).resolve().parent.parent
    built = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert built["packages"] == ["src/caspo"]
    assert "exclude" not in built
    assert {path.name for path in (root / "src/caspo/serve/page").iterdir()} == set(NAMES)


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    yield from chromium()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Fake, str]]:
    fake = Fake()
    with serving(fake) as url:
        yield fake, url


class Visit:
    """A tab on the page, and everything that it did which it may not do."""

    def __init__(self, browser, fake: Fake, url: str, size=DESKTOP, **media) -> None:
        self.fake, self.url = fake, url
        fake.bodies.clear(), fake.paths.clear(), fake.hung_up.clear()
        self.page = browser.new_page()
        self.page.set_viewport_size(size)
        self.page.emulate_media(**media)
        self.page.set_default_timeout(60_000)  # a loaded machine is slow, not broken
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def ask(self, question: str, state: str = "answered") -> None:
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        self.reach(state)

    def reach(self, state: str) -> None:
        self.page.wait_for_selector(f"#result[data-state={state}]")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def rows(self, kind: str = "") -> list[str]:
        return [row.strip() for row in self.page.locator(f"#tree .row{kind} > .text").all_inner_texts()]

    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.id || document.activeElement.textContent")


@pytest.fixture
def visit(browser, server, request):
    visits: list[Visit] = []

    def start(*size, **media) -> Visit:
        visits.append(Visit(browser, *server, *size, **media))
        return visits[-1]

    yield start
    for one in visits:
        one.page.close()
        # What every test here holds: nothing left this machine, and nothing went wrong unseen.
        assert one.requests
        assert [url for url in one.requests if not url.startswith((one.url, "data:"))] == []
        expected = ("401", "429", "502") if "refus" in request.node.name else ()
        assert [error for error in one.errors if not any(code in error for code in expected)] == []
        assert one.page.url == one.url
        assert not any(KEY in path for path in one.fake.paths)


def test_a_question_asked_by_keyboard_alone_grows_its_tree_and_shows_its_answer(visit) -> None:
    tab = visit()
    keys = tab.page.keyboard
    for _ in range(2):
        keys.press("Tab")  # past the skip link
    assert tab.focused() == "question"
    keys.type(QUESTION)
    keys.press("Enter")
    tab.reach("answered")
    body = tab.fake.bodies[0]
    assert body["messages"] == [{"role": "user", "content": QUESTION}]
    assert (body["model"], body["stream"], body["caspo"]) == ("stories-tiny", True, {"events": True, "tree": True})
    assert tab.rows(":not(.question)") != []
    assert len(tab.rows()) == 1 + len(TREE)
    assert tab.rows(".pruned") == ["Then she has 13 + 14 = 28"]
    assert "line-through" in tab.page.eval_on_selector(".pruned .text", "e => getComputedStyle(e).textDecorationLine")
    assert tab.rows(".answer:not(.question)") == [TREE[i]["text"].strip() for i in ANSWER]
    assert (tab.text("#answer"), tab.text("#confidence")) == ("27", "0.87 confidence")
    assert "214 tokens" in tab.text("#facts")
    assert "10 steps · 2 finished · 1 pruned" in tab.text("#counts")
    # The tree: up and down walk, left goes to the parent, Enter tells more.
    tab.page.focus("#tree [tabindex='0']")
    keys.press("End")
    assert "The answer is 27." in tab.focused()
    keys.press("ArrowLeft")
    assert "32 - 5 = 27." in tab.focused()
    keys.press("Enter")
    shown = tab.text(".details")
    assert "0.9300" in shown
    assert "0.5232" in shown
    assert "expanded" in shown
    keys.press("Enter")
    assert tab.page.locator(".details").count() == 0
    keys.press("Home")
    keys.press("ArrowRight")
    assert "18 pears" in tab.focused()
    assert tab.page.locator("#tree [tabindex='0']").count() == 1


def test_a_step_that_branches_keeps_its_first_child_below_and_the_others_between(visit) -> None:
    tab = visit()
    tab.ask(QUESTION)
    order = [0, 4, 9, 5, 8, 1, 6, 7, 2, 3]
    assert tab.rows()[1:] == [TREE[i]["text"].strip() for i in order]
    items = tab.page.locator("#tree [role=treeitem]").evaluate_all(
        "rows => rows.map(r => ['aria-level', 'aria-posinset', 'aria-setsize'].map(n => Number(r.getAttribute(n))))"
    )
    assert items[1:5] == [[2, 1, 1], [3, 1, 3], [4, 1, 2], [4, 2, 2]]


def test_settled_steps_are_told_to_a_screen_reader(visit) -> None:
    tab = visit()
    tab.ask(QUESTION)
    assert tab.page.get_attribute("#heard", "aria-live") == "polite"
    heard = tab.page.text_content("#heard")
    assert "Step 1, confidence 0.97: Mia buys" in heard
    assert "Step 4, confidence 0.99: The answer is 27." in heard
    assert "Answer: 27 Confidence 0.87" in tab.page.text_content("#status")


def test_what_the_model_writes_is_shown_and_never_run(visit) -> None:
    tab = visit()
    tab.ask("hostile")
    assert tab.rows()[1] == HOSTILE
    assert tab.text("#answer") == HOSTILE
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("main img, main b, main script").count() == 0


def test_markdown_and_latex_are_rendered_under_the_policy_and_shown_as_written_on_demand(visit) -> None:
    tab = visit({"width": 360, "height": 740})
    tab.ask("marked $x_1$")
    step = tab.page.locator("#tree .row:nth-child(2) > .text")
    assert step.locator("math[display=block] mfrac").count() == 1
    assert step.locator("strong").inner_text() == "x"
    assert tab.page.locator("#tree .question math msub").count() == 1
    assert "x = \\frac{1}{2}" in tab.page.get_attribute("#tree .row:nth-child(2)", "aria-label")
    tab.page.click("#written")
    assert step.text_content() == MARKED.rstrip()
    assert tab.page.locator("#tree math").count() == 0
    tab.page.click("#written")
    assert step.locator("math").count() == 1


def test_thinking_is_folded_and_no_part_of_the_answers_text(visit) -> None:
    tab = visit()
    tab.ask("thinking, please")
    assert tab.rows(".thinking") == [TREE[i]["text"].strip() for i in (0, 1)]
    assert tab.rows(".answer:not(.question)") == [TREE[i]["text"].strip() for i in ANSWER]
    assert tab.page.get_attribute("#tree .row.thinking", "aria-label").startswith("Thinking: Mia buys")
    heard = tab.page.text_content("#heard")
    assert "Thinking, step 1" in heard
    assert "Step 3" in heard
    tab.page.click("[data-copy=text]")
    assert tab.page.input_value("#copied") == "".join(TREE[i]["text"] for i in ANSWER[2:]).rstrip("\n") + "\n"


def test_an_abstention_is_said_plainly_with_its_reason(visit) -> None:
    tab = visit()
    tab.ask("unsure", "abstained")
    assert tab.text("#state") == "Abstained"
    assert "below abstain_below" in tab.text("#reason")
    assert tab.text("#confidence") == "0.12 confidence"
    assert tab.rows(".answer") == []


def test_a_method_that_tells_no_growth_still_shows_the_steps_of_its_answer(visit) -> None:
    tab = visit()
    tab.ask("silent")
    assert tab.rows(".answer:not(.question)") == [TREE[i]["text"].strip() for i in ANSWER]


def test_a_method_without_decisions_shows_which_paths_ended(visit) -> None:
    tab = visit()
    tab.ask("undecided")
    assert tab.rows(".finished") == ["The answer is 27."] * 2
    assert "10 steps · 2 finished" in tab.text("#counts")
    assert tab.page.locator(".growing").count() == 0


@pytest.mark.parametrize(("question", "reason"), [("error", "The engine failed: NaN."), ("lost", "connection ended before")])
def test_a_stream_that_breaks_keeps_its_tree_and_says_why(visit, question: str, reason: str) -> None:
    tab = visit()
    tab.ask(question, "failed")
    assert reason in tab.text("#reason")
    tab.page.wait_for_selector("#tree .row:nth-child(6)")
    tab.ask(QUESTION)  # and the next question is answered as if nothing had been


def test_stop_ends_the_request_and_keeps_what_grew(visit) -> None:
    tab = visit()
    tab.page.fill("#question", "forever")
    tab.page.press("#question", "Enter")
    tab.page.wait_for_selector("#tree .row:nth-child(6)")
    tab.page.click("#stop")
    tab.reach("stopped")
    assert tab.fake.hung_up.wait(5)
    assert len(tab.rows()) == 6
    assert tab.page.is_visible("#ask")


@pytest.mark.parametrize(("question", "reason"), [("busy", "Try again in 7 seconds"), ("proxy", "502")])
def test_a_refusal_says_what_to_do(visit, question: str, reason: str) -> None:
    tab = visit()
    tab.ask(question, "failed")
    assert reason in tab.text("#reason")


@pytest.mark.parametrize("keep", [False, True])
def test_a_refused_request_asks_for_the_key_and_keeps_it_only_if_told_to(visit, keep: bool) -> None:
    tab = visit()
    tab.ask("key", "failed")
    tab.page.wait_for_selector("#key-form:not([hidden])")
    assert tab.focused() == "key"
    tab.page.fill("#key", KEY)
    if keep:
        tab.page.check("#keep-key")
    tab.page.press("#key", "Enter")
    tab.reach("answered")
    stored = tab.page.evaluate(
        "JSON.stringify([Object.values(sessionStorage), Object.values(localStorage), document.cookie])"
    )
    assert stored == (f'[["{KEY}"],[],""]' if keep else '[[],[],""]')
    assert KEY not in tab.page.content()


def test_settings_are_sent_where_changed_and_copies_hold_no_key(visit) -> None:
    tab = visit()
    tab.page.click("summary")
    tab.page.select_option("[name=method]", "cat")
    assert tab.page.is_disabled("[name=samples]")
    tab.page.fill("[name=paths]", "4")
    tab.page.fill("[name=prune_below]", "0.2")
    tab.page.fill("[name=max_tokens]", "99")
    tab.ask("It's $HOME")
    sent = tab.fake.bodies[0]
    assert sent["max_tokens"] == 99
    assert sent["caspo"] == {"method": "cat", "paths": 4, "prune_below": 0.2, "events": True, "tree": True}
    tab.page.click("[data-copy=curl]")
    assert r"""It'\''s $HOME""" in tab.page.input_value("#copied")
    tab.page.click("[data-copy=python]")
    code = tab.page.input_value("#copied")
    compile(code, "copied", "exec")
    assert 'extra_body={"caspo": {"method":"cat","paths":4,"prune_below":0.2}}' in code


def test_a_row_being_read_stays_where_it_is_while_others_grow_above(visit) -> None:
    tab = visit({"width": 360, "height": 220})
    tab.fake.pause = 0.015
    try:
        tab.page.fill("#question", QUESTION)
        tab.page.press("#question", "Enter")
        tab.page.wait_for_selector("#tree .row:nth-child(5)")
        last = "document.querySelector('#tree .row:last-child').getBoundingClientRect().top"
        tab.page.evaluate("document.querySelector('#tree .row:last-child').scrollIntoView()")
        before = tab.page.evaluate(last)
        tab.reach("answered")
    finally:
        tab.fake.pause = 0.0
    assert len(tab.rows()) == 1 + len(TREE)
    assert abs(tab.page.evaluate(last) - before) < 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(visit, scheme: str) -> None:
    tab = visit({"width": 360, "height": 740}, color_scheme=scheme, reduced_motion="reduce")
    wide = "document.documentElement.scrollWidth > innerWidth"
    assert not tab.page.evaluate(wide)
    tab.page.click("summary")
    tab.ask("hostile")
    tab.page.click("#tree .row:last-child")
    tab.page.click("[data-copy=curl]")
    assert not tab.page.evaluate(wide)
    assert tab.page.evaluate("document.getAnimations().length") == 0


def test_everything_that_takes_focus_has_a_name_and_shows_it(visit) -> None:
    tab = visit()
    tab.page.click("summary")
    unnamed = tab.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, summary, a")].filter(e =>
            !(e.getAttribute("aria-label") || e.textContent.trim() || [...(e.labels ?? [])].some(l => l.textContent.trim())))
            .map(e => e.outerHTML)"""
    )
    assert unnamed == []
    ids = tab.page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'aria-(?:describedby|labelledby)="([\w-]+)"', content("index.html")):
        assert reference in ids
    tab.page.focus("#question")
    for _ in range(5):
        tab.page.keyboard.press("Tab")
        assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_thousands_of_nodes_are_drawn_in_batches_that_leave_the_browser_its_turns(visit) -> None:
    tab = visit()
    tab.page.evaluate(
        """() => {
            window.most = 0;
            const count = (records) => { window.most = Math.max(window.most, records.length); };
            new MutationObserver(count).observe(document.querySelector("#tree"), { childList: true });
        }"""
    )
    tab.ask("thousands")
    assert tab.page.locator("#tree .row").count() == 3001 + len(TREE)
    assert 0 < tab.page.evaluate("window.most") <= 250


def test_events_are_the_same_wherever_the_stream_is_cut_and_however_its_lines_end(visit) -> None:
    tab = visit()
    found = tab.page.evaluate(
        r"""async () => {
            const { EventCutter } = await import("/stream.js");
            const text = ": hello\n\ndata: one\r\n\r\ndata:two\r\ndata: lines\n\nevent: x\rdata: three\r\rdata: four\n\n";
            const found = new Set();
            for (let a = 0; a <= text.length; a++) for (let b = a; b <= text.length; b++) {
                const cutter = new EventCutter();
                const parts = [text.slice(0, a), text.slice(a, b), text.slice(b)];
                found.add(JSON.stringify(parts.flatMap((part) => cutter.push(part))));
            }
            return [...found];
        }"""
    )
    assert found == ['["one","two\\nlines","three","four"]']


def test_characters_cut_in_the_middle_arrive_whole(visit) -> None:
    tab = visit()
    found = tab.page.evaluate(
        r"""async () => {
            const { streamChat } = await import("/stream.js");
            const bytes = new TextEncoder().encode('data: {"text": "ῥεῖ 🙂"}\n\ndata: [DONE]\n\n');
            const body = new ReadableStream({
                start(to) { for (const byte of bytes) to.enqueue(Uint8Array.of(byte)); to.close(); },
            });
            window.fetch = async () => new Response(body, { headers: { "Content-Type": "text/event-stream" } });
            const found = [];
            await streamChat({}, { onChunk: (chunk) => found.push(chunk.text) });
            return found;
        }"""
    )
    assert found == ["ῥεῖ 🙂"]

"""Markdown and LaTeX of models, as the page and the report show them: what is read as what; a text is never markup."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib import resources

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from browser import chromium
from caspo.render import SCRIPTS, STYLE, asset, inlined
from caspo.report import write_report
from page_server import HOSTILE
from report_run import make_run, tree

ASSETS = resources.files("caspo.render") / "assets"
VENDORED = json.loads(asset("vendored.json"))
ELEMENTS = {
    "p", "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "strong", "em", "hr", "br",
    "pre", "code", "span", "div",
}  # fmt: skip
ATTRIBUTES = {"class", "dir", "data-mark", "value"}
SHOWN = """text => {
    const box = document.createElement("div");
    document.body.replaceChildren(box);
    caspoText.show(box, text);
    const all = [...box.querySelectorAll("*")].filter(e => !e.closest("math"));
    const maths = [...box.querySelectorAll("math, math *")];
    const up = (e) => (e === box ? 0 : 1 + up(e.parentNode));
    return {
        html: box.innerHTML.replace(/ dir="auto"/g, ""), raw: box.textContent,
        elements: [...new Set(all.map(e => e.localName))],
        attributes: [...new Set(all.flatMap(e => [...e.attributes].map(a => a.name)))],
        formulas: box.querySelectorAll("math").length,
        foreign: maths.filter(e => !e.namespaceURI.endsWith("MathML")).map(e => e.localName),
        names: [...new Set(maths.flatMap(e => [...e.attributes].map(a => a.name)))],
        depth: Math.max(0, ...all.map(up)),
    };
}"""
IN_A_TAB = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Without a browser


@pytest.mark.parametrize("name", VENDORED)
def test_files_of_others_are_as_published_with_their_licence_beside_them(name: str) -> None:
    facts = VENDORED[name]
    assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == facts["sha256"]
    licence = asset(f"{facts['name']}.LICENSE")
    assert licence.startswith(f"{facts['name']} {facts['version']}\n")
    assert "Permission is hereby granted" in licence


def test_every_script_is_ours_or_recorded() -> None:
    assert set(SCRIPTS) == {*VENDORED, "render.js"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_stand_in_a_page(name: str) -> None:
    """The report holds it between tags: nothing in it may end it, or begin a comment."""
    assert not any(mark in inlined(name).lower() for mark in ("</script", "<script", "<!--"))


# In a browser


@pytest.fixture(scope="module")
def tab() -> Iterator[object]:
    for context in chromium():
        page = context.new_page()
        page.set_content("<!doctype html><title>t</title><body></body>")
        page.add_style_tag(content=asset(STYLE))
        for name in SCRIPTS:
            page.add_script_tag(content=inlined(name))
        page.seen = watched(page)
        yield page


def watched(page) -> list[str]:
    """What the tab asks for, logs and fails at from now on."""
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("console", lambda message: seen.append(message.text))
    return seen


@pytest.fixture
def show(tab):
    return lambda text: tab.evaluate(SHOWN, text)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**bold** and `a_1 * b`", "<p><strong>bold</strong> and <code>a_1 * b</code></p>"),
        ("One.\n**Two.**", "<p>One.<br><strong>Two.</strong></p>"),
        ("### Step 3", '<p class="heading">Step 3</p>'),
        ("a\n\n    b *c*, no code", "<p>a</p><p>b <em>c</em>, no code</p>"),
        ("```python\na * b", '<pre><span class="info">python</span><code>a * b</code></pre>'),
        # The numbers that were written; a fragment of an indented list is no deeper list; a minus stays one.
        ("3. c\n5. e", '<ol data-mark="."><li value="3">c</li><li value="5">e</li></ol>'),
        ("- a\n  - b", '<ul data-mark="-"><li>a<ul data-mark="-"><li>b</li></ul></li></ul>'),
        ("   - a\n   - b", '<ul data-mark="-"><li>a</li><li>b</li></ul>'),
        ("28\n+ 4\n= 32", '<p>28</p><ul data-mark="+"><li>4<br>= 32</li></ul>'),
        # Arithmetic is no emphasis and no heading.
        ("3*6*2 = 36, x**2 + y**2", "<p>3*6*2 = 36, x**2 + y**2</p>"),
        ("2*(3)*4 and (2)*3*(4)", "<p>2*(3)*4 and (2)*3*(4)</p>"),
        ("*x*\n===\n*y*", "<p><em>x</em><br>===<br><em>y</em></p>"),
        # Nothing leads or loads anywhere.
        ("[a](https://x.example) `y`", "<p>[a](https://x.example) <code>y</code></p>"),
        ("![a](https://x.example/i.png)_", "<p>![a](https://x.example/i.png)_</p>"),
        ("[a]: https://x.example\n\n[a] `y`", "<p>[a]: https://x.example</p><p>[a] <code>y</code></p>"),
        ("<https://x.example> *a*", "<p>&lt;https://x.example&gt; <em>a</em></p>"),
        ("<think>\n*hm*\n</think>", "<p>&lt;think&gt;<br><em>hm</em><br>&lt;/think&gt;</p>"),
        ("<b onclick='x()'>*b*</b> &lt;", "<p>&lt;b onclick='x()'&gt;<em>b</em>&lt;/b&gt; &amp;lt;</p>"),
        # Dollars.
        ("$5 and $6, *so* 3$, then 5$.", "<p>$5 and $6, <em>so</em> 3$, then 5$.</p>"),
        ("*so* $5*2=$<<5*2=10>>10", "<p><em>so</em> $5*2=$&lt;&lt;5*2=10&gt;&gt;10</p>"),
        (r"\$5 or $ x$ or $x $", "<p>$5 or $ x$ or $x $</p>"),
        ("$$$$ *a*", "<p>$$$$ <em>a</em></p>"),
        # Formulas that are not closed, or are none, stay as they are, whole.
        ("*a* \\[\n x_1 * y_2\n", '<p><em>a</em> <span class="written">\\[\n x_1 * y_2</span></p>'),
        ("3 = 3\n\\]\n*a*", "<p>3 = 3<br>\\]<br><em>a</em></p>"),
        (r"$\frac{1$ *a*", '<p><span class="written">$\\frac{1$</span> <em>a</em></p>'),
        (r"$\unknown$", '<p><span class="written">$\\unknown$</span></p>'),
        (r"\frac{1}{2} *a* 25\%", r"<p>\frac{1}{2} <em>a</em> 25%</p>"),
        (r"\sum_{i} \{1, 2\}", r"<p>\sum_{i} \{1, 2\}</p>"),
    ],
)
def test_what_models_write_is_read_as_they_mean_it(show, text: str, html: str) -> None:
    assert show(text)["html"] == html


@pytest.mark.parametrize("text", ["plain", "a\nb", "3 + 4 = 7", "-5 and 1.5", "1.5 and\n2.5"])
def test_a_text_without_any_marks_is_left_alone(show, text: str) -> None:
    assert show(text)["html"] == text


@pytest.mark.parametrize(
    ("text", "formulas", "around"),
    [
        (r"so \(a_1 * b_1 * c\) *is*", 1, ["so ", " ", "is"]),
        ("$x_1$ and $y_1$, $z$", 3, [" and ", ", "]),
        (r"$\$5$", 1, []),
        (r"$1 \times 2$, $2n \ge 12$ and $2n = 12$", 3, [", ", " and "]),
        (r"\boxed{$1,200}, \(20% \cdot 5\) and $6 \mbox{ m}^2$", 3, [", ", " and "]),
        ("Therefore:\n\\[\n3\n\n- 4 \\\\\n+ 5\n= 7\n\\]\nDone.", 1, ["Therefore:", "Done."]),
        ("- total:\n  \\[\n  3 + 4\n  \\]\n- next", 1, ["total:", "next"]),
        ("1. total:\n\\[\n3 + 4\n\\]\n", 1, ["total:"]),
        ("$$\na\n$$\nand $$b$$", 2, ["and "]),
        ("\\begin{align*}\na &= b \\\\\n &= c\n\\end{align*}", 1, []),
        (r"The answer is \boxed{\frac{1}{2}}.", 1, ["The answer is ", "."]),
        ("| a | b |\n|---|---|\n| $x_1$ | \\(y\\) |", 2, ["a", "b"]),
        ("`$x$` and `\\[` $y$", 1, ["$x$", " and ", "\\[", " "]),
        (r"\begin{tabular}{c}x\end{tabular} $y$", 1, [r"\begin{tabular}{c}x\end{tabular} "]),
    ],
)
def test_formulas_are_mathml_and_keep_what_looks_like_markdown(show, tab, text: str, formulas: int, around) -> None:
    found = show(text)
    assert found["formulas"] == formulas
    outside = tab.evaluate(
        """() => {
            for (const math of document.querySelectorAll("math")) math.remove();
            const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            const texts = [];
            while (walk.nextNode()) texts.push(walk.currentNode.data);
            return texts;
        }"""
    )
    assert outside == around
    assert "written" not in found["html"]
    assert "<br>" not in found["html"], "a formula on lines of its own brings them"


HARM = [
    HOSTILE,
    r"$\href{javascript:alert(1)}{x}$",
    r"$\includegraphics{https://x.example/i.png}$",
    r"$\url{https://x.example}$",
    r"$\style{background: url(https://x.example)}{x}$",
    r"$\class{card}{x}$ $\id{question}{x}$ $\data{a=b}{x}$",
    r"\[\begin{align} x \label{question} \end{align}\]",
    r"$\text{<img src=x onerror='window.hacked=1'>}$",
    "|<img src=x onerror=window.hacked=1>|b|\n|-|-|\n|<script>window.hacked=1</script>|$<b>$|",
    "```<img src=x onerror=window.hacked=1>\n<script>window.hacked=1</script>",
    "[x](javascript:window.hacked=1) <javascript:x> ![x](x onerror=1)",
    "\0\ufffe\u202e **x**",
    r"$\color{red;background:url(https://x.example)}{x}$ $\rule{900em}{900em}$",
]
PIECES = [
    *HARM, *"*_`#>|-+~$\\[](){}!<&\n\t ^", "**", "\n\n", "```", "\\[", "\\]", "\\(", "\\)", "$$", "\\begin{align}",
    "\\end{align}", "\\boxed{", "\\frac", "    ", "1. ", "| a |\n|---|\n", "\\def\\a{\\a\\a}", "\\a", "مرحبا",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=40).map("".join))
@IN_A_TAB
def test_only_the_elements_of_the_list_come_of_any_text(show, tab, text: str) -> None:
    check(show(text), tab)


@pytest.mark.parametrize("text", HARM)
def test_harmful_texts_do_nothing(show, tab, text: str) -> None:
    check(show(text), tab)


def check(found: dict, tab) -> None:
    assert set(found["elements"]) <= ELEMENTS
    assert set(found["attributes"]) <= ATTRIBUTES
    assert set(found["foreign"]) <= {"span"}  # temml's number of an equation
    bad = {"id", "href", "src"}
    assert not [name for name in found["names"] if name in bad or name.startswith(("on", "data-", "xlink"))]
    assert tab.evaluate("window.hacked") is None
    assert tab.seen == []


MARKS = [*"*_`#>-+~$\\[](){}!<&\n", "**", "\n\n", "\n```", "\n    ", "\n1. ", "](", "\n---\n", "\n> "]


@given(st.lists(st.sampled_from(MARKS), max_size=30))
@IN_A_TAB
def test_no_word_is_lost(show, marks: list[str]) -> None:
    words = [f"w{i}w" for i in range(len(marks) + 1)]
    raw = show(words[0] + "".join(f"{mark} {word}" for mark, word in zip(marks, words[1:], strict=True)))["raw"]
    at = [raw.find(word) for word in words]
    assert -1 not in at
    assert at == sorted(at)


LONG = {
    "dollars": "$" * 10_000,
    "openers": "\\[\n\n" * 3000,
    "list": "\n".join("  " * i + "- a" for i in range(1000))[:19_000],
    "emphasis": "*(a " * 2400 + "a)* " * 2400,
    "strong": "**" * 4000 + "a" + "**" * 4000,
    "quotes": ">" * 16_000,
    "latex": "\\[" + "\\frac{1}{" * 1500 + "x" + "}" * 1500 + "\\]",
    "nested": "\\[" + "\\frac{1}{" * 300 + "x" + "}" * 300 + "\\]",
    "definitions": "$\\def\\a{" + "x" * 2000 + "}" + "\\a" * 900 + "$",
    "formulas": "$x$ " * 4000,
    "huge": "**a** " * 100_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_text_of_any_size_is_shown_and_never_deep(show, tab, text: str) -> None:
    """Browsers fail at elements some thousands deep; what would be is shown as written."""
    found = show(text)
    assert found["raw"]
    assert found["depth"] <= 45
    assert found["formulas"] <= 400
    assert tab.seen == []


def test_a_table_of_two_hundred_rows_is_a_table(show, tab) -> None:
    show("| a | b |\n|---|--:|\n" + "| 1 | $x$ |\n" * 200)
    assert tab.locator("tbody tr").count() == 200
    assert tab.locator("td.right math").count() == 200


def test_the_report_renders_its_steps_and_gives_them_back_as_written(tab, tmp_path) -> None:
    run = make_run(tmp_path)
    drawn = json.loads((run / "report_data.json").read_text())
    marked = tree(1, "What is $x$?")
    source = "Thus **x** is:\n\\[\n  x = \\frac{1}{2}\n\\]\n"
    marked["nodes"][0]["text"], marked["answer"] = source, r"\frac{1}{2}"
    drawn["trees"] = [marked]
    (run / "report_data.json").write_text(json.dumps(drawn))
    page = tab.context.new_page()
    page.set_viewport_size({"width": 360, "height": 740})
    seen = watched(page)
    page.goto(write_report(run).as_uri())
    step = page.locator(".text", has_text="Thus")
    assert step.locator("math[display=block] mfrac").count() == 1
    assert step.locator("strong").inner_text() == "x"
    assert page.locator(".question math").count() == 1
    assert page.locator(".outcome math mfrac").count() == 1
    page.click("button.switch")
    assert step.text_content() == source.rstrip()
    assert page.locator(".tree-card math").count() == 0
    page.click("button.switch")
    assert step.locator("math").count() == 1
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert seen == [page.url]
    page.close()

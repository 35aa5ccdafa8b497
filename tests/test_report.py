"""The page parses, says what metrics.json says, escapes what models write, asks the network for nothing."""

import json
from html.parser import HTMLParser
from importlib import resources

import pytest

from caspo.core.errors import DataError
from caspo.render import SCRIPTS
from caspo.report import write_report
from caspo.report.markup import Html, el, json_script, points
from caspo.report.run_data import _method, difference_interval, read_run
from caspo.report.trees import confidence_colour
from report_run import QUESTION, make_run, method, tree

VOID = {"br", "col", "hr", "img", "meta", "wbr"}


class Page(HTMLParser):
    """Collects tags, the values of <data>, text, and the JSON of the charts; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.values: list[float] = []
        self.text = ""
        self.figures: dict[str, dict] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.values.append(float(dict(attrs)["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data
        elif self.tags[-1][1].get("type") == "application/json":
            self.figures[self.tags[-1][1]["id"]] = json.loads(data)

    def headings(self, level="h2"):
        return sum(tag == level for tag, _ in self.tags)


def page_of(run) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run):
    return page_of(run)


def change(run, **changes):
    """Rewrite metrics.json of a run."""
    path = run / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_part_is_there(page):
    assert page.headings("h1") == 1
    assert page.headings("h2") == 10
    assert set(page.figures) == {
        f"{name}-figure"
        for name in (
            *(f"{kind}-{index}" for kind in ("tokens", "reliability", "risk", "entropy") for index in (0, 1)),
            "by-round",
        )
    }


def test_the_figures_are_those_of_metrics_json(run, page):
    metrics = json.loads((run / "metrics.json").read_text())
    expected = []
    for r in metrics["rounds"]:
        for m in r["methods"].values():
            expected += [
                m["accuracy"],
                *m["accuracy_ci95"],
                m["generated_tokens_per_question"],
                m["seconds_per_question"],
                *(m["answers"][key] for key in ("ece", "auroc", "aurc")),
                m["faithfulness"]["wrong_step"],
            ]
        steps = r["steps"]
        expected += [steps[key] for key in ("ece", "brier", "ece_calibrated", "entropy_right", "entropy_wrong")]
        for family in ("auroc", "auroc_siblings"):
            expected += steps[family].values()
            expected += [end for ends in steps[f"{family}_ci95"].values() for end in ends]
    assert set(expected) <= set(page.values)
    for text in (
        "58.0%",
        "46.0%",
        "51.1% to 64.6%",
        "0.271",
        "5.7% (3.1% to 9.9%)",
        "+12.0 points",
        "60,123",
        "smollm2-135m",
        "caspo run recipes",
    ):
        assert text in page.text


def test_charts_hold_the_figures_and_are_valid_plotly(run, page):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    metrics = json.loads((run / "metrics.json").read_text())
    for figure in page.figures.values():
        themed = json.dumps(figure).replace("@", "#")
        for name in ("ink", "muted", "grid", "line", "card", "raw", "calibrated", "right", "wrong"):
            themed = themed.replace(f'"#{name}"', '"#123456"')
        for name in ("1", "2", "3", "other"):
            themed = themed.replace(f'"#m-{name}"', '"#123456"')
        graph_objects.Figure(json.loads(themed))  # raises on any attribute or value Plotly does not know
    (curve,) = page.figures["risk-1-figure"]["data"]
    assert (curve["name"], curve["x"], curve["y"]) == ("CaT", [0.25, 0.5, 1.0], [0.125, 0.25, 0.5])
    spots = {t["name"]: t for t in page.figures["tokens-1-figure"]["data"] if t["mode"] == "markers"}
    cat = metrics["rounds"][1]["methods"]["cat"]
    assert spots["CaT"]["x"] == [cat["generated_tokens_per_question"]]
    assert spots["CaT"]["y"] == [cat["accuracy"]]
    assert spots["CaT"]["error_y"]["array"][0] == pytest.approx(cat["accuracy_ci95"][1] - cat["accuracy"])


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base", "form"}
        assert "src" not in attributes
        assert attributes.get("href", "#results").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policies[0]
    assert "http" not in policies[0]
    assert not any(word in stylesheet() for word in ("@import", "url(", "http"))
    scripts = sum(tag == "script" and "type" not in attributes for tag, attributes in page.tags)
    assert scripts == 2 + len(SCRIPTS) + 1, "Plotly once and ours, then those that render steps"


def stylesheet() -> str:
    return (resources.files("caspo.report") / "page.css").read_text(encoding="utf-8")


def test_signals_without_intervals(run, page, tmp_path):
    """Runs of older versions recorded none, and some are null: the figures stay, the error bars go."""
    bars = sum(a.get("class") == "reach interval" for _, a in page.tags)
    older = make_run(tmp_path)
    rounds = json.loads((older / "metrics.json").read_text())["rounds"]
    assert bars == 2 * sum(len(r["steps"]["auroc"]) for r in rounds)
    low, high = rounds[0]["steps"]["auroc_siblings_ci95"]["entropy"]
    styles = [a["style"] for _, a in page.tags if a.get("class") == "reach interval"]
    assert f"--reach:0.100;--low:0.000;--high:{2 * high - 1:.3f}" in styles, "the bar begins at 0.5, above 0.47"
    assert low < 0.5
    rounds[0]["steps"]["auroc_ci95"]["entropy"] = None
    del rounds[1]["steps"]["auroc_ci95"], rounds[1]["steps"]["auroc_siblings_ci95"]
    change(older, rounds=rounds)
    less = page_of(older)
    assert sum(a.get("class") == "reach interval" for _, a in less.tags) == bars // 2 - 1
    assert set(rounds[1]["steps"]["auroc"].values()) <= set(less.values)


def test_changes_of_the_steps(page, tmp_path):
    """Before, after, difference and its interval; what is undefined, or of other rounds, is left out."""
    assert {-0.15, -0.171, -0.124} <= set(page.values)
    assert "−0.150" in page.text
    assert "AUROC of entropy, all steps" in page.text
    assert "AUROC of entropy, siblings" not in page.text
    run = make_run(tmp_path)
    drawn = json.loads((run / "report_data.json").read_text())
    for item in drawn["step_changes"]:
        item["after"] = 2
    (run / "report_data.json").write_text(json.dumps(drawn))
    assert "paired by question" not in page_of(run).text


def test_model_text_stays_text(tmp_path):
    run = make_run(tmp_path)
    nasty = '</script><script>alert(1)</script><img src=x onerror=alert(2)> "quoted" & done'
    drawn = json.loads((run / "report_data.json").read_text())
    hurt = tree(1, nasty)
    hurt["nodes"][0]["text"] = hurt["gold"] = hurt["answer"] = nasty
    drawn["trees"] = [hurt]
    drawn["rounds"][0]["budget_curve"]["self_consistency"][0]["label"] = nasty
    (run / "report_data.json").write_text(json.dumps(drawn))
    (run / "recipe.yaml").write_text(nasty)
    (run / "environment.json").write_text(json.dumps({nasty: nasty}))
    change(run, recipe=nasty, model=nasty)
    page = page_of(run)
    assert page.text.count(nasty) >= 8
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "alert(1)</script>" not in (run / "report.html").read_text()


def test_trees(page):
    steps = [a["class"].split()[1] for tag, a in page.tags if a.get("class", "").startswith("step ")]
    assert {"expanded", "finished", "pruned", "dropped", "cut"} == set(steps)
    assert len(steps) == 6 * 7
    assert QUESTION in page.text
    assert {0.93, 0.12} <= set(page.values)


def test_round_zero_only(tmp_path):
    page = page_of(make_run(tmp_path, rounds=1))
    assert "nothing to compare it with" in page.text
    assert "Training" not in page.text
    assert "CaT solves 46.0%" in page.text


def test_a_run_with_almost_nothing(tmp_path):
    make_run(tmp_path)
    for name in ("report_data.json", "environment.json", "recipe.yaml"):
        (tmp_path / name).unlink()
    change(tmp_path, rounds=[{"round": 0, "methods": None, "steps": None, "training": None}], model=None)
    page = page_of(tmp_path)
    assert "No method was evaluated" in page.text
    assert "recipe.yaml is missing" in page.text
    assert page.figures == {}


def nulled(value):
    """Every figure null, structure kept."""
    if isinstance(value, dict):
        return {key: item if key == "round" else nulled(item) for key, item in value.items()}
    return [nulled(item) for item in value] if isinstance(value, list) else None


def test_every_figure_may_be_null(tmp_path):
    run = make_run(tmp_path)
    change(run, rounds=nulled(json.loads((run / "metrics.json").read_text())["rounds"]))
    drawn = json.loads((run / "report_data.json").read_text())
    (run / "report_data.json").write_text(json.dumps(nulled(drawn) | {"schema": 1}))
    assert "NaN" not in page_of(run).text


@pytest.mark.parametrize("where", ["rounds", "methods", "steps", "training", "budget_curve", "nodes", "entropy"])
def test_a_part_of_the_wrong_type_is_left_out(tmp_path, where):
    run = make_run(tmp_path)

    def spoil(value):
        if isinstance(value, dict):
            return {key: "nonsense" if key == where else spoil(item) for key, item in value.items()}
        return [spoil(item) for item in value] if isinstance(value, list) else value

    for name in ("metrics.json", "report_data.json"):
        if where != "rounds" or name == "report_data.json":
            (run / name).write_text(json.dumps(spoil(json.loads((run / name).read_text()))))
    assert page_of(run).headings("h1") == 1


def test_a_difference_inside_the_noise_is_called_that(tmp_path):
    run = make_run(tmp_path)
    rounds = json.loads((run / "metrics.json").read_text())["rounds"]
    rounds[1]["methods"]["cat"] |= {"accuracy": 0.48, "accuracy_ci95": [0.412, 0.549]}
    change(run, rounds=rounds)
    assert "inside the noise and not a finding" in page_of(run).text
    rounds[1]["methods"]["cat"] |= {"accuracy": 0.2, "accuracy_ci95": [0.15, 0.26]}
    change(run, rounds=rounds)
    assert "The model got worse" in page_of(run).text


def test_a_recorded_paired_difference_is_preferred(tmp_path):
    run = make_run(tmp_path)
    drawn = json.loads((run / "report_data.json").read_text())
    drawn["paired"] = [{"method": "cat", "before": 0, "after": 1, "difference": 0.12, "low": 0.05, "high": 0.19}]
    (run / "report_data.json").write_text(json.dumps(drawn))
    text = page_of(run).text
    assert "+5.0 to +19.0 (paired by question)" in text


def test_the_interval_of_a_difference_is_newcombes(run):
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 = 0.2, interval 0.0524 to 0.3339."""
    a, b = _method("a", method(48, 80, 1, 1)), _method("b", method(56, 70, 1, 1))
    assert difference_interval(a, b) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert difference_interval(_method("a", {}), b) is None


def test_many_rounds_and_unknown_methods(tmp_path):
    run = make_run(tmp_path, rounds=4)
    rounds = json.loads((run / "metrics.json").read_text())["rounds"]
    rounds[3]["methods"]["my_search"] = rounds[3]["methods"]["cat"] | {"accuracy": 0.9}
    change(run, rounds=rounds[::-1])
    page = page_of(run)
    assert "My search" in page.text
    assert [r.index for r in read_run(run).rounds] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"holds no metrics\.json.*run the command"),
        ('{"schema": 1, "rounds": [', "not valid JSON.*run the command again"),
        ("[]", "schema 'list'.*Evaluate the run again"),
        ('{"schema": 2, "rounds": []}', "schema 2.*Evaluate the run again"),
        ('{"schema": 1, "rounds": []}', "no rounds.*run it|no rounds.*Run the command"),
        ('{"schema": 1, "rounds": "x"}', "no rounds"),
    ],
)
def test_unusable_metrics_say_what_why_and_what_to_do(tmp_path, content, match):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=match):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["report_data.json", "environment.json"])
@pytest.mark.parametrize("content", ['{"rounds"', "[1]"])
def test_other_damaged_files_are_named(tmp_path, name, content):
    run = make_run(tmp_path)
    (run / name).write_text(content)
    with pytest.raises(DataError, match=name):
        write_report(run)


def test_markup_escapes_by_default():
    assert el(
        "p", "<b>", el("i", "&"), class_='"', hidden=True, id=None
    ) == '<p class="&quot;" hidden><i>&amp;</i></p>'.replace("<i>", "&lt;b&gt;<i>")
    assert "</script>" not in json_script("x", {"a": "</script>"})[:-9]
    assert el("p", Html("<b>")) == "<p><b></p>"
    assert points(-0.031) == "−3.1"


def test_confidence_colours_have_readable_text():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    last = -1.0
    for i in range(101):
        background, ink = confidence_colour(i / 100)
        bright, dark = sorted((luminance(background), luminance(ink)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5
        assert luminance(background) >= last  # lightness rises with confidence
        last = luminance(background)

// The tree, drawn while it grows: one row per step, lanes at its left.
//
// A step's first continuation stays in its lane, below; the others leave to the right, between the two. So a chain runs
// straight down however deep it is, which fits a phone, and a new row has one place: after its parent if it is the first
// child, else before the first child. Whatever stands between a step and its first child lies in a lane further right: every
// lane left of a row is a line that goes on.
//
// Rows are flat in the page (aria-level says how they hang together). Text of the model only ever becomes a text node or what
// caspoText (render.js) makes of it.

const CIVIDIS = [
  [0, 32, 77], [0, 51, 111], [57, 72, 107], [87, 92, 109], [112, 113, 115],
  [138, 135, 121], [166, 157, 117], [196, 181, 108], [228, 207, 91], [255, 234, 70],
]; // even steps of lightness, the same to colour-blind readers (Nunez, Anderton and Renslow 2018)

/** What became of a step: the mark in its dot, the badge beside it, and what a screen reader hears and the details say. */
export const DECISIONS = {
  "": { mark: "", badge: "", means: "none yet, or the method decides nothing about single steps" },
  expanded: { mark: "", badge: "", means: "expanded: other steps follow it" },
  finished: { mark: "M6 10.2l2.8 2.8 5.4-6", badge: "finished", means: "finished: the path ends here and votes for its answer" },
  pruned: { mark: "M6.8 6.8l6.4 6.4m0-6.4l-6.4 6.4", badge: "pruned", means: "pruned: its last step states a false equation, or the model was too unsure of it" },
  dropped: { mark: "M6 10h8", badge: "dropped", means: "dropped: another path was better, or nothing could change the answer" },
  cut: { mark: "M7.8 6.3v7.4m4.4-7.4v7.4", badge: "cut", means: "cut: its tokens were used up" },
};

/** A step's decision; a method that decides nothing still has paths that end by themselves. */
const decisionOf = ({ decision, final }) => (decision in DECISIONS && decision ? decision : final ? "finished" : "");

const BATCH = 250; // nodes drawn before the browser gets a turn

/** An element with attributes and children; strings become text, whatever they hold. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** The same for the parts of a drawing. */
function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const dot = (mark) =>
  svg("svg", { class: "dot", viewBox: "0 0 20 20" }, svg("circle", { cx: 10, cy: 10, r: 7.5 }), svg("path", { d: mark }));

/** [background, text] for a confidence in [0, 1]; the text is black or white, whichever contrasts more. */
export function confidenceColour(confidence) {
  const place = Math.min(1, Math.max(0, confidence)) * (CIVIDIS.length - 1);
  const below = Math.min(Math.floor(place), CIVIDIS.length - 2);
  const mixed = CIVIDIS[below].map((low, i) => Math.round(low + (place - below) * (CIVIDIS[below + 1][i] - low)));
  const linear = mixed.map((v) => v / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return [`rgb(${mixed.join(" ")})`, luminance > 0.179 ? "#000" : "#fff"];
}

export const fixed = (number, digits = 2) => (Number.isFinite(number) ? number.toFixed(digits) : "–");

export class ReasoningTree {
  /** `box` is the element with role="tree"; `changed` is called after rows were drawn. */
  constructor(box, changed) {
    this.box = box;
    this.changed = changed;
    this.clear("");
    box.addEventListener("keydown", (event) => this.#key(event));
    box.addEventListener("click", (event) => this.#click(event));
  }

  clear(question) {
    clearTimeout(this.timer);
    this.timer = null;
    this.waiting = []; // what has arrived and is not drawn yet, in order
    this.steps = new Map(); // id -> {node, parent, children, row, lane}
    this.lit = [];
    this.settled = [];
    this.focused = null;
    this.box.replaceChildren();
    this.root = null;
    if (!question) return;
    this.root = this.#newStep(-1, null, { text: question, depth: 0 });
    this.box.append(this.root.row);
    this.#focusable(this.root.row);
  }

  /** New and changed nodes. */
  grow(nodes) {
    for (const node of nodes) this.waiting.push({ node });
    this.#drawSoon();
  }

  /** The next step that every answer still possible goes through. */
  settle(text) {
    this.waiting.push({ settled: text });
    this.#drawSoon();
  }

  /** Draw what is left, then mark the answer's path, given by the texts of its steps. */
  async finish(texts) {
    const root = this.root;
    while (this.waiting.length && this.root === root) {
      this.#draw();
      await new Promise((resolve) => setTimeout(resolve));
    }
    if (this.root !== root || root === null) return;
    const path = this.#find(root, texts, 0) ?? [];
    if (path.length) this.#light([root, ...path], true);
    for (const { children } of [root, ...this.steps.values()]) {
      [...children.slice(1), ...children.slice(0, 1)].forEach((child, place) => {
        child.row.setAttribute("aria-setsize", children.length);
        child.row.setAttribute("aria-posinset", place + 1);
      });
    }
    this.changed();
  }

  /** What the marks mean, into a list of definitions. */
  showLegend(list) {
    for (const [name, { mark, badge, means }] of Object.entries(DECISIONS)) {
      if (name !== "expanded") list.append(el("dt", { class: `row ${name || "open"}` }, dot(mark)), el("dd", {}, badge ? means : "a step"));
    }
  }

  /** Whether no node has arrived. */
  get empty() {
    return this.steps.size === 0 && !this.waiting.some(({ node }) => node);
  }

  counts() {
    const found = { steps: this.steps.size, pruned: 0, finished: 0, tokens: 0 };
    for (const { node } of this.steps.values()) {
      found.pruned += decisionOf(node) === "pruned";
      found.finished += decisionOf(node) === "finished";
      found.tokens += node.tokens || 0;
    }
    return found;
  }

  #drawSoon() {
    // A timer and not an animation frame: those stand still in a tab that is not looked at.
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.#draw();
      if (this.waiting.length) this.#drawSoon();
    }, 16);
  }

  #draw() {
    const many = this.waiting.length > BATCH;
    this.box.classList.toggle("hurried", many); // no animation while hundreds arrive
    for (const item of this.waiting.splice(0, BATCH)) {
      if (item.node) this.#place(item.node);
      else this.#settleNext(item.settled);
    }
    this.changed();
  }

  #place(node) {
    const known = this.steps.get(node.id);
    if (known) {
      known.node = node;
      this.#fill(known);
      return;
    }
    const parent = this.steps.get(node.parent) ?? this.root;
    const step = this.#newStep(node.id, parent, node);
    this.steps.set(node.id, step);
    if (parent.children.length) parent.children[0].row.before(step.row);
    else parent.row.after(step.row);
    parent.children.push(step);
    parent.row.classList.add("has-children");
  }

  #newStep(id, parent, node) {
    const lane = parent === null ? 0 : parent.lane + (parent.children.length > 0);
    const rail = el("span", { class: "rail", "aria-hidden": "true" });
    for (let at = 0; at < lane; at++) {
      const line = el("i", { class: "pass" });
      line.style.setProperty("--at", at);
      rail.append(line);
    }
    if (parent !== null) rail.append(el("i", { class: parent.lane === lane ? "up" : "elbow" }));
    rail.append(
      el("i", { class: "down" }),
      dot(""),
    );
    const row = el("div", {
      class: "row",
      role: "treeitem",
      tabindex: "-1",
      "aria-level": Math.min(parent === null ? 1 : Number(parent.row.getAttribute("aria-level")) + 1, 999),
    });
    row.append(rail, el("div", { class: "text" }), el("span", { class: "marks" }));
    row.style.setProperty("--lane", lane);
    row.step = { id, parent, node, row, lane, children: [] };
    this.#fill(row.step);
    return row.step;
  }

  #fill({ node, row, id }) {
    const name = id === -1 ? "question" : decisionOf(node);
    const decision = DECISIONS[name] ?? DECISIONS[""];
    const written = String(node.text ?? "");
    const text = written.trim() || "(empty step)";
    row.className = `row ${name || "open"}${node.thinking ? " thinking" : ""}${row.step?.children.length ? " has-children" : ""}`;
    caspoText.show(row.querySelector(".text"), written.trim() ? written : text);
    row.querySelector(".dot path").setAttribute("d", decision.mark);
    if (id === -1) {
      row.setAttribute("aria-label", `Question: ${text}`);
      return;
    }
    const [background, ink] = confidenceColour(node.confidence);
    row.style.setProperty("--c", background);
    row.style.setProperty("--on-c", ink);
    row.style.setProperty("--share", Math.min(1, Math.max(0, node.confidence || 0)));
    const marks = row.querySelector(".marks");
    marks.replaceChildren(el("span", { class: "chip", title: "confidence of the step" }, fixed(node.confidence)));
    if (node.thinking) marks.append(el("span", { class: "badge" }, "thinking"));
    if (decision.badge) marks.append(el("span", { class: "badge" }, decision.badge));
    const became = decision.badge && `, ${decision.badge}`;
    const kind = node.thinking ? "Thinking: " : "";
    row.setAttribute("aria-label", `${kind}${text} Confidence ${fixed(node.confidence)}${became}`);
    const details = row.querySelector(".details");
    if (details) details.replaceWith(this.#details(node));
  }

  #details(node) {
    const facts = [
      ["Confidence of the step", fixed(node.confidence, 4)],
      ["Confidence of the path so far", fixed(node.path_confidence, 4)],
      ["Tokens", String(node.tokens ?? "–")],
      ["Step", `${node.depth ?? "–"}${node.final ? ", the last one of its path" : ""}`],
      ["Decision", DECISIONS[decisionOf(node)].means],
    ];
    return el("dl", { class: "details" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }

  #toggle(step) {
    const open = step.row.querySelector(".details");
    if (open) open.remove();
    else if (step.id !== -1) step.row.append(this.#details(step.node));
    step.row.classList.toggle("opened", !open);
    if (!open && step.id !== -1) this.told?.(step.row.querySelector(".details").innerText);
  }

  // The answer's path

  #settleNext(text) {
    const tail = this.settled.at(-1) ?? this.root;
    const [next] = matching(tail?.children ?? [], text);
    if (!next) return;
    this.settled.push(next);
    this.#light([this.root, ...this.settled], false);
  }

  /** The steps below `step` whose texts are `texts` from `from` on; of equal ones those that finished. */
  #find(step, texts, from) {
    const path = [];
    for (let at = from, here = step; at < texts.length; at++) {
      const fits = matching(here.children, texts[at]);
      if (fits.length > 1) {
        const ways = fits.map((fit) => [fit, this.#find(fit, texts, at + 1)]).filter(([, rest]) => rest);
        const best = ways.find(([fit, rest]) => (rest.at(-1) ?? fit).node.final) ?? ways[0];
        return best ? [...path, best[0], ...best[1]] : null;
      }
      if (!fits.length) return null;
      path.push((here = fits[0]));
    }
    return path;
  }

  /** Draw a path, given from the root on, as a strong line; `answer`: it is the answer's, to its end. */
  #light(path, answer) {
    for (const lit of this.lit) lit.classList.remove("lit", "answer");
    const lit = (this.lit = []);
    const light = (part, name = "lit") => {
      if (part === null) return;
      part.classList.add(name);
      lit.push(part);
    };
    path.forEach(({ row }) => light(row, answer ? "answer" : "lit"));
    for (let i = 1; i < path.length; i++) {
      const [from, to] = [path[i - 1], path[i]];
      light(from.row.querySelector(".down"));
      for (let row = from.row.nextElementSibling; row !== to.row; row = row.nextElementSibling) {
        light(row.querySelectorAll(".pass")[from.lane]);
      }
      light(to.row.querySelector(".up, .elbow"));
    }
  }

  // Keyboard and mouse: one row is in the tab order, the arrow keys move from row to row

  #focusable(row) {
    this.focused?.setAttribute("tabindex", "-1");
    this.focused = row;
    row.setAttribute("tabindex", "0");
  }

  #key(event) {
    const step = event.target.step;
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    const go = {
      ArrowDown: () => step.row.nextElementSibling,
      ArrowUp: () => step.row.previousElementSibling,
      ArrowRight: () => (step.children.length ? step.row.nextElementSibling : null),
      ArrowLeft: () => step.parent?.row,
      Home: () => this.box.firstElementChild,
      End: () => this.box.lastElementChild,
    }[event.key];
    if (event.key === "Enter" || event.key === " ") this.#toggle(step);
    else if (go) this.#move(go());
    else return;
    event.preventDefault();
  }

  #move(row) {
    if (!row) return;
    this.#focusable(row);
    row.focus();
  }

  #click(event) {
    const row = event.target.closest(".row");
    if (!row || String(getSelection())) return; // selecting text is not a click
    this.#move(row);
    if (!event.target.closest(".details")) this.#toggle(row.step);
  }
}

/** The steps with this text. The stream's may have been cut at a stop string: if none has it whole, those that begin with it. */
function matching(steps, text) {
  const wanted = String(text ?? "").trim();
  const own = ({ node }) => String(node.text ?? "").trim();
  const whole = steps.filter((step) => own(step) === wanted);
  return whole.length || !wanted ? whole : steps.filter((step) => own(step).startsWith(wanted));
}

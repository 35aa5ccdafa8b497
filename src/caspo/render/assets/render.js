// What a model writes, shown as it meant it: Markdown by markdown-it, LaTeX as MathML by temml.
//
// The text of a model is never markup: markdown-it's tokens become elements of the short list below and text nodes, and temml's
// output is looked through before it goes in. There are no links and no images: nothing here asks another host for anything, and
// nothing leads there. What is too long, too deep or no valid LaTeX stays the text it is.
//
// A classic script, so that the page loads it and the report holds it: it makes one global, `caspoText`.
"use strict";
globalThis.caspoText = (() => {
  const MOST_TEXT = 20_000; // characters of a text, of one formula, formulas of a text: beyond, they are shown as written
  const MOST_LATEX = 4_000;
  const MOST_FORMULAS = 400;
  const DEEPEST = 40; // elements inside each other; browsers run out of stack at some thousands

  const ENVIRONMENT = /^\\begin\{((?:equation|align|alignat|gather|multline|flalign|eqnarray|split|aligned|gathered|alignedat|cases|array|(?:[bBpvV]|small)?matrix)\*?)\}/;
  // Definitions let a short formula grow without bound, and no answer needs one.
  const DEFINES = /\\(?:[gex]?def|let|futurelet|global|long|(?:re|provide)?newcommand|renewcommand|providecommand|definecolor)(?![a-zA-Z])/;
  // Between two amounts of money there is no formula: "$5 and then 3$", "$5 * 2 = $<<5*2=10>>10".
  const AMOUNTS = /^\d[^\\^=_{}]*\p{L}{2}[^\\^=_{}]*\d$|^(?:\d|<<|\.)[^\\^_{}]*[-=+*/(]$/u;
  const MARKED = /[\\$*_`#|>]|^\s*[-+] |^\s*\d+[.)] |^\s*(?:-{3}|~{3})/m;

  // LaTeX in Markdown: rules of the parser, so that neither reads what is the other's

  /** {tex, display, end} of the formula that begins at `start`; {unclosed: true} where one begins and does not end; else null. */
  function formulaAt(src, start, max, missing) {
    const closed = (open, close, tex = (end) => src.slice(start + open.length, end), display = true) => {
      const end = missing.has(close) ? -1 : src.indexOf(close, start + open.length);
      if (end < 0 || end + close.length > max) {
        missing.add(close); // looked for once, however often it is opened
        return { unclosed: true };
      }
      return { tex: tex(end), display, end: end + close.length };
    };
    if (src[start] === "\\") {
      if (src.startsWith("\\[", start)) return closed("\\[", "\\]");
      if (src.startsWith("\\(", start)) return closed("\\(", "\\)", undefined, false);
      if (src.startsWith("\\begin{", start)) {
        const [open, name] = ENVIRONMENT.exec(src.slice(start, start + 40)) ?? [];
        const close = `\\end{${name}}`;
        return open ? closed(open, close, (end) => src.slice(start, end + close.length)) : null;
      }
      if (src.startsWith("\\boxed{", start)) {
        const end = braceEnd(src, start + 6, max);
        return end < 0 ? null : { tex: src.slice(start, end), display: false, end };
      }
      return null;
    }
    if (src[start + 1] === "$") {
      const found = src[start + 2] === "$" ? null : closed("$$", "$$");
      return found?.tex?.trim() === "" ? null : found;
    }
    // Pandoc's rule, so that "$5 and $6" are dollars; nor does one begin right after a letter or digit: "3$, then 5$".
    if (/[\s$]/.test(src[start + 1] ?? " ") || /[\p{L}\p{N}]/u.test(src[start - 1] ?? "")) return null;
    let end = start + 1;
    while (end < max && src[end] !== "$") end += src[end] === "\\" ? 2 : 1;
    if (end >= max || /\s/.test(src[end - 1]) || /[\d$]/.test(src[end + 1] ?? "")) return null;
    const tex = src.slice(start + 1, end);
    return tex.length < 1000 && AMOUNTS.test(tex) ? null : { tex, display: false, end: end + 1 };
  }

  /** Behind the brace that closes the one at `start`; -1 if none does. */
  function braceEnd(src, start, max) {
    let depth = 0;
    for (let at = start; at < Math.min(max, start + MOST_LATEX); at++) {
      if (src[at] === "\\") at++;
      else if (src[at] === "{") depth++;
      else if (src[at] === "}" && --depth === 0) return at + 1;
    }
    return -1;
  }

  /** Inline rule. A formula that is opened and never closed, as in a fragment, stays as written to the end of its paragraph. */
  function formula(state, silent) {
    const { src, pos, posMax } = state;
    if (src[pos] !== "\\" && src[pos] !== "$") return false;
    state.missing ??= new Set();
    const found = formulaAt(src, pos, posMax, state.missing);
    if (!found || (found.unclosed && src[pos] === "$")) {
      if (src[pos] !== "$") return false;
      let end = pos; // a run of dollars is looked at once
      while (src[end] === "$") end++;
      if (!silent) state.pending += src.slice(pos, end);
      state.pos = end;
      return true;
    }
    const end = found.unclosed ? posMax : found.end;
    if (!silent) {
      const token = state.push(found.unclosed ? "written" : "formula", "", 0);
      token.content = found.unclosed ? src.slice(pos) : found.tex;
      token.markup = src.slice(pos, end);
      token.meta = { display: found.display };
    }
    state.pos = end;
    return true;
  }

  /** Inline rule. A backslash before a mark of Markdown hides the mark; any other is LaTeX's and stays. */
  function escaped(state, silent) {
    if (state.src[state.pos] !== "\\") return false;
    const next = state.src[state.pos + 1] ?? "";
    const hides = "$*_`#|~<>&%.-+".includes(next) && next !== "";
    if (!silent) state.pending += hides ? next : `\\${next === "\n" ? "" : next}`;
    state.pos += next === "\n" || next === "" ? 1 : 2;
    return true;
  }

  /** Block rule in place of markdown-it's: lines of a display formula are no lists or rules, and blank ones do not end it. */
  function paragraph(state, startLine, endLine) {
    const enders = state.md.block.ruler.getRules("paragraph");
    const parent = state.parentType;
    state.parentType = "paragraph";
    let next = startLine;
    for (let open = null; next < endLine; next++) {
      if (!open && next > startLine) {
        if (state.isEmpty(next)) break;
        const prose = state.sCount[next] - state.blkIndent > 3 || state.sCount[next] < 0;
        if (!prose && enders.some((ender) => ender(state, next, endLine, true))) break;
      }
      open = stillOpen(state.src.slice(state.bMarks[next] + state.tShift[next], state.eMarks[next]), open);
      if (open && !closes(state, next + 1, endLine, open)) {
        while (next + 1 < endLine && !state.isEmpty(next + 1)) next++; // a fragment: what is left of the paragraph
        open = null;
      }
    }
    const content = state.getLines(startLine, next, state.blkIndent, false).trim();
    state.line = next;
    state.push("paragraph_open", "p", 1).map = [startLine, next];
    Object.assign(state.push("inline", "", 0), { content, map: [startLine, next], children: [] });
    state.push("paragraph_close", "p", -1);
    state.parentType = parent;
    return true;
  }

  /** What would close the formula that is open behind this line; null if none is. */
  function stillOpen(line, open) {
    for (let at = 0; at < line.length; ) {
      const found = open ? line.indexOf(open, at) : line.slice(at).search(/\\\[|\$\$|\\begin\{|`/);
      if (found < 0) break;
      if (open) {
        at = found + open.length;
        open = null;
        continue;
      }
      at += found;
      if (line[at] === "`") {
        at = Math.max(line.indexOf("`", at + 1), at) + 1; // code on this line
      } else if (line.startsWith("\\b", at)) {
        const [begin, name] = ENVIRONMENT.exec(line.slice(at, at + 40)) ?? ["\\begin{"];
        open = name ? `\\end{${name}}` : null;
        at += begin.length;
      } else {
        open = line[at] === "$" ? "$$" : "\\]";
        at += 2;
      }
    }
    return open;
  }

  /** Whether a line from `from` on has this; what is not found is not looked for again. */
  function closes(state, from, endLine, close) {
    if (from >= endLine) return false;
    const missing = (state.env.missing ??= new Map());
    if (missing.get(close) <= from) return false;
    const found = state.src.indexOf(close, state.bMarks[from]);
    if (found < 0) missing.set(close, from);
    return found >= 0 && found < state.eMarks[endLine - 1];
  }

  // The Markdown that models write in steps, rule by rule: HTML, links, images and addresses stay text. Indentation alone makes no
  // code, and a line of dashes or equal signs no heading: a step is a fragment, and arithmetic has such lines.
  const markdown = markdownit("zero", { breaks: true, maxNesting: DEEPEST }).enable([
    "table", "fence", "blockquote", "hr", "list", "heading", "newline", "backticks", "emphasis",
  ]);
  markdown.block.ruler.at("paragraph", paragraph);
  markdown.inline.ruler.before("text", "formula", formula);
  markdown.inline.ruler.after("formula", "escaped", escaped);
  markdown.inline.State = class extends markdown.inline.State {
    /** An asterisk between letters or digits multiplies: 3*6*2, x**2. */
    scanDelims(start, canSplitWord) {
      const found = super.scanDelims(start, canSplitWord);
      if (this.src[start] !== "*") return found;
      const before = this.src[start - 1] ?? " ";
      const after = this.src[start + found.length] ?? " ";
      return {
        ...found,
        can_open: found.can_open && !/[A-Za-z0-9)\]}]/.test(before),
        can_close: found.can_close && !/[A-Za-z0-9(]/.test(after),
      };
    }
  };

  // Elements

  const NAMES = new Set(["p", "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "strong", "em", "hr", "br"]);
  const TEXT_BLOCKS = new Set(["p", "li", "th", "td", "blockquote"]);

  function el(name, className, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  /** Tokens as elements, appended to `root`. */
  function build(tokens, root, count) {
    const stack = [root];
    const aside = (token) => token?.meta?.display === true; // it has its own lines, a break beside it would add one
    for (const [at, token] of tokens.entries()) {
      const here = stack.at(-1);
      if (token.type === "inline") build(token.children, here, count);
      else if (token.type === "text") here.append(token.content);
      else if (token.type === "formula") here.append(++count.formulas > MOST_FORMULAS ? written(token.markup) : mathOf(token));
      else if (token.type === "written") here.append(written(token.content));
      else if (token.type === "code_inline") here.append(el("code", "", token.content));
      else if (token.type === "fence") here.append(fence(token));
      else if (token.hidden) continue; // the paragraph of a list item without blank lines
      else if (token.tag === "br" && (aside(tokens[at - 1]) || aside(tokens[at + 1]))) continue;
      else if (token.nesting < 0) stack.pop();
      else {
        const made = elementOf(token);
        here.append(token.tag === "table" ? el("div", "wide", made) : made);
        if (token.nesting > 0 && stack.push(made) > DEEPEST) throw new RangeError("too deep");
      }
    }
  }

  function fence({ info, content }) {
    const made = el("pre", "", el("code", "", content));
    if (info.trim()) made.prepend(el("span", "info", info.trim())); // the language, or text that stood behind the marks
    return made;
  }

  function elementOf(token) {
    if (token.type === "heading_open") return el("p", "heading"); // the page has its own outline
    const name = token.type === "softbreak" || token.type === "hardbreak" ? "br" : token.tag;
    if (!NAMES.has(name)) throw new TypeError(`no element for ${token.type}`);
    const made = el(name);
    if (TEXT_BLOCKS.has(name)) made.dir = "auto";
    if (name === "li" && token.info) made.value = token.info; // the number that was written
    if (name === "ol" || name === "ul") made.dataset.mark = token.markup; // shown: a minus must not become a dot
    const align = /^text-align:(left|center|right)$/.exec(token.attrGet("style") ?? "");
    if (align) made.classList.add(align[1]);
    return made;
  }

  const written = (text) => el("span", "written", text);

  /** A formula's <math>, in a box that scrolls if it is on a line of its own; what temml cannot read, as written. */
  function mathOf({ content, markup, meta }) {
    // Models write 20% and $5 in formulas: they mean the signs, not a comment and the end of the formula.
    const hide = (tex, sign) => tex.replace(/\\[^]|[%$]/g, (found) => (found === sign ? `\\${sign}` : found));
    const tex = hide(content, "%");
    const math = mathML(tex, meta.display) ?? mathML(hide(tex, "$"), meta.display);
    if (!math) return written(markup);
    return meta.display ? el("span", "wide", math) : math;
  }

  function mathML(tex, display) {
    if (tex.length > MOST_LATEX || DEFINES.test(tex)) return null;
    const box = document.createElement("span");
    try {
      const macros = { "\\mbox": "\\text" };
      temml.render(tex, box, { displayMode: display, throwOnError: true, trust: false, maxSize: [20, 20], wrap: "tex", macros });
    } catch {
      return null; // no LaTeX, or deeper than the stack
    }
    const math = box.firstElementChild;
    return box.childNodes.length === 1 && math.localName === "math" && harmless(math) ? math : null;
  }

  /** Whether there is only MathML in it, not too deep; names that others could be found by are taken off. */
  function harmless(math) {
    const waiting = [[math, 0]];
    while (waiting.length) {
      const [element, depth] = waiting.pop();
      if (depth > 2 * DEEPEST || !(element.namespaceURI.endsWith("/MathML") || element.localName === "span")) return false;
      for (const { name } of [...element.attributes]) {
        if (/^(?:on|data-|src|href|xlink)/i.test(name)) return false;
        if (name === "id") element.removeAttribute(name);
      }
      for (const child of element.children) waiting.push([child, depth + 1]);
    }
    return true;
  }

  /** A fragment of a document: the blank lines around it and the indentation that all its lines share go. */
  function outdented(source) {
    const lines = source.replace(/\r\n?/g, "\n").replace(/^(?:[ \t]*\n)+/, "").trimEnd().split("\n");
    const indents = lines.filter((line) => line.trim()).map((line) => /^[ \t]*/.exec(line)[0].length);
    const shared = indents.length ? Math.min(...indents) : 0;
    return lines.map((line) => line.slice(shared)).join("\n");
  }

  /** The text as elements in a DocumentFragment; null if there is nothing to render, or too much. */
  function render(source) {
    if (source.length > MOST_TEXT || !MARKED.test(source)) return null;
    const fragment = document.createDocumentFragment();
    try {
      const tokens = markdown.parse(outdented(source), {});
      if (tokens.some(({ level }) => level >= DEEPEST - 1)) return null; // markdown-it drops what is deeper
      build(tokens, fragment, { formulas: 0 });
    } catch (error) {
      if (!(error instanceof RangeError)) console.error(error);
      return null;
    }
    return fragment;
  }

  // Elements that show a text

  const shown = new WeakMap(); // element -> [text, what renders it]
  let asWritten = false;

  function fill(box) {
    const [text, how] = shown.get(box);
    const found = asWritten ? null : how(text);
    box.classList.toggle("rendered", found !== null);
    box.classList.toggle("source", asWritten);
    box.replaceChildren(found ?? text.replace(/^(?:[ \t]*\r?\n)+|\s+$/g, ""));
  }

  function put(box, text, how) {
    if (shown.get(box)?.[0] === text) return;
    shown.set(box, [text, how]);
    box.classList.add("shown");
    box.dir = "auto";
    fill(box);
  }

  /** Answers are often bare LaTeX: \frac{3}{4}. */
  const answer = (text) => (/\\[a-zA-Z]/.test(text) && !/\$|\\[([]/.test(text) ? mathML(text, false) : null) ?? render(text);

  return {
    render,
    /** Show a step's text in this element. */
    show: (box, text) => put(box, text, render),
    /** Show an answer in it. */
    showAnswer: (box, text) => put(box, text, answer),
    /** Let a button choose between the rendered texts and the texts as they were written. */
    switchBy(button) {
      button.addEventListener("click", () => {
        asWritten = !asWritten;
        button.setAttribute("aria-pressed", asWritten);
        for (const box of document.querySelectorAll(".shown")) fill(box);
      });
    },
  };
})();

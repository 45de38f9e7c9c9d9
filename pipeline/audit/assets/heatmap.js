/* A document as a token heat map: shared by the report of `rpt audit` and the pages of `rpt browse`.
 *
 *     const map = RptHeatmap.mount(element, doc, { metric: "entropy", position: 17 });
 *     element.addEventListener("rpt:site", (event) => event.detail);   // { doc_id, position, site_id, reason }
 *     element.addEventListener("rpt:elsewhere", (event) => event.detail.position);   // a position that is not given here
 *     element.addEventListener("rpt:metric", (event) => event.detail.metric);   // another metric is shown
 *     map.show("nll"); map.select(42);
 *
 * `doc` is a JSON object; lists are parallel, one entry per token (position):
 *
 *     doc_id, split, source_file, source_row   where the document is from
 *     meta            object: the other columns of the record
 *     first           optional: position of the first token given (default 0), for a part of a document
 *     total           optional: number of tokens of the whole document, for a part of it
 *     tokens          the characters that begin in the token (invisible ones are marked here): "" where it only has more
 *                     bytes of the character before; \xNN for bytes that are no character
 *     raw             optional {index: hex}: bytes of the tokens that are not this text
 *     entropy, nll, entropy_partial            nats, or null where the position was not scored
 *     rank            number of tokens that the proxy found likelier than the true one, or null
 *     field, token_class                       names: a list, or { names: [...], of: [index, ...] }
 *     state           0: kept; i: rejected, for reasons[i - 1]
 *     reasons         names of the reasons (`not_scorable`, `where`, …), in the order in which they are checked
 *     because         optional {name: sentence}: explanation of a reason, for the details
 *     parts           optional: the parts of the rule, and the rules after it, [{ text, holds, values }]: SQL or a key;
 *                     a character per token, "1" it holds, "0" not, "-" not reached; the values that decide it:
 *                     { columns: names of columns of doc }, { names, of }, or one { text }
 *     change          optional { gained, lost }: positions of the whole document at which another rule decides otherwise
 *     site_ids        optional: id of the site or null; without it the id is <doc_id>-<position>
 *     map             optional: the whole document in equal parts: { entropy, nll, rank, kept }, lists of one entry each
 *     hardest         optional: positions of the document to which `h` and `H` go
 *     top             optional: per token [[text, log-probability], ...], most likely first, or null
 *
 * options: metric ("entropy", "nll", "rank"), position (initially selected).
 *
 * Corpus text only becomes text nodes and is never interpreted as HTML. Colours are classes of heatmap.css and no style
 * attribute is written, so a Content-Security-Policy without 'unsafe-inline' works.
 */
"use strict";

const RptHeatmap = (() => {
  const METRICS = {
    // edges[i] is where step i + 1 of the scale begins
    entropy: { name: "Entropy", unit: "nats", edges: [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2] },
    nll: { name: "Loss", unit: "nats", edges: [0.5, 1, 1.5, 2, 3, 4, 6, 8] },
    rank: { name: "Rank", unit: "", edges: [1, 2, 4, 8, 16, 64, 256, 1024] },
  };
  const SHOWN = { text: 80, details: 600, likely: 24, part: 300 }; // characters of a token
  // Every character of Unicode's categories Other and Separator, and letters that render as nothing.
  const SHORT = 320; // pixels of a text beside which the panel need not stick to the screen of a phone
  const INVISIBLE = /[\p{C}\p{Z}\u034f\u115f\u1160\u2800\u3164\uffa0]/gu;
  const NAMED = { "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
  const MARKS = { 1: ["hm-holds", "✓", "holds"], 0: ["hm-fails", "✗", "does not hold"], "-": ["", "–", "not reached, or not known"] };
  const REJECTED_AS = { not_scorable: "unscored", inside_character: "unscored", where: "rule" };

  /** An element with a class, an optional text and children. */
  function el(tag, className, text, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined && text !== null) node.textContent = text;
    node.append(...children);
    return node;
  }

  /** The mark that stands for an invisible character. */
  function markOf(character) {
    const point = character.codePointAt(0);
    if (NAMED[character]) return NAMED[character];
    if (point < 32) return String.fromCodePoint(0x2400 + point);
    return point === 127 ? "␡" : "U+" + point.toString(16).toUpperCase().padStart(4, "0");
  }

  /** Nodes for `text` with marks for invisible characters. With `alone`, spaces are marked too and line ends do not
   * break the line. */
  function visible(text, { alone = false } = {}) {
    const nodes = [];
    let last = 0;
    const push = (end) => { if (end > last) nodes.push(document.createTextNode(text.slice(last, end))); };
    if (/^\p{M}/u.test(text)) nodes.push(el("span", "hm-mark", "◌"));
    for (const { 0: character, index } of text.matchAll(INVISIBLE)) {
      if (character === " " && !alone) continue;
      push(index);
      nodes.push(el("span", "hm-mark", character === " " ? "␣" : markOf(character)));
      if (character === "\n" && !alone) nodes.push(document.createTextNode("\n"));
      last = index + character.length;
    }
    push(text.length);
    return nodes;
  }

  /** The first `most` characters of `text` as nodes, with a mark at the end that gives the full length. */
  function shortened(text, most, options) {
    if (text.length <= most) return visible(text, options);
    const head = Array.from(text.slice(0, 2 * most)).slice(0, most).join("");
    return [...visible(head, options), el("span", "hm-mark", ` … ${number(text.length)} characters`)];
  }
  const columnOf = (column) => (Array.isArray(column) ? (i) => column[i] : (i) => column.names[column.of[i]]);
  const number = (value, digits = 3) =>
    value === null || value === undefined ? "–" : Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(digits);
  const words = (name) => name.replaceAll("_", " ");

  /** Step 0 … 8 of the colour scale, or null without a score. */
  function heat(metric, value) {
    if (value === null || value === undefined) return null;
    let step = 0;
    for (const edge of METRICS[metric].edges) if (value >= edge) step += 1;
    return step;
  }

  /** Draw `doc` into `element`. Returns { show(metric), select(position), element }. */
  function mount(element, doc, options = {}) {
    const first = doc.first ?? 0;
    const total = doc.total ?? first + doc.tokens.length;
    const field = columnOf(doc.field);
    const tokenClass = columnOf(doc.token_class);
    const reasonOf = (i) => (doc.state[i] ? doc.reasons[doc.state[i] - 1] : null);
    const kindOf = (i) => (doc.state[i] ? REJECTED_AS[reasonOf(i)] ?? "cap" : "kept");
    const sampled = new Set(doc.rollouts ?? []);
    const gained = new Set(doc.change?.gained);
    const lost = new Set(doc.change?.lost);
    const changed = [...gained, ...lost].sort((a, b) => a - b);
    const changeOf = (i) => (gained.has(first + i) ? "gained" : lost.has(first + i) ? "lost" : null);
    const siteOf = (i) => (doc.site_ids ? doc.site_ids[i] : doc.state[i] ? null : `${doc.doc_id}-${first + i}`);
    let metric = null;
    let current = Math.max(0, Math.min(doc.tokens.length - 1, (options.position ?? first) - first));

    // ---------------------------------------------------------------- toolbar: metric, scale, marks
    const buttons = {};
    const choice = el("div", "hm-choice");
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-label", "Colour the tokens by");
    for (const [key, { name }] of Object.entries(METRICS)) {
      buttons[key] = el("button", "hm-button", name);
      buttons[key].type = "button";
      buttons[key].addEventListener("click", () => show(key));
      choice.append(buttons[key]);
    }
    const scale = el("div", "hm-scale");
    const marks = el("ul", "hm-marks");
    const counts = new Map();
    for (let i = 0; i < doc.tokens.length; i += 1) {
      const name = reasonOf(i) ?? "kept";
      counts.set(name, (counts.get(name) ?? 0) + 1);
    }
    for (const name of ["kept", ...doc.reasons]) {
      if (!counts.has(name)) continue;
      const kind = name === "kept" ? "kept" : REJECTED_AS[name] ?? "cap";
      marks.append(el("li", "", null, el("span", `hm-swatch hm-${kind}`, "ab"), ` ${words(name)} `, el("b", "", number(counts.get(name)))));
    }
    if (sampled.size) marks.append(el("li", "", null, el("span", "hm-swatch hm-sampled", "ab"), " has rollouts ", el("b", "", number(sampled.size))));
    for (const [name, positions] of Object.entries(doc.change ?? {})) {
      marks.append(el("li", "", null, el("span", `hm-swatch hm-${name}`, "ab"), ` ${name} `, el("b", "", number(positions.length))));
    }
    const toolbar = el("div", "hm-toolbar", null, choice, scale, marks);

    // ---------------------------------------------------------------- the text
    const text = el("div", "hm-text");
    text.setAttribute("role", "listbox");
    text.setAttribute("aria-label", `Tokens of document ${doc.doc_id}`);
    const hard = doc.hardest ?? [];
    const { head, pieces } = RptCharacters.splitCharacters(doc.tokens);
    const spans = doc.tokens.map((token, i) => {
      const split = pieces[head[i]] > 1;
      const span = el("span", `hm-token hm-${kindOf(i)}${sampled.has(i) ? " hm-sampled" : ""}`, null, ...(split ? [] : shortened(token, SHOWN.text)));
      if (split) span.setAttribute("aria-label", `${doc.tokens[head[i]]}, piece ${i - head[i] + 1} of ${pieces[head[i]]}`);
      if (changeOf(i)) span.classList.add(`hm-${changeOf(i)}`);
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      span.tabIndex = -1;
      span.dataset.i = i;
      return span;
    });
    for (let i = 0; i < spans.length; i += pieces[i]) {
      if (pieces[i] === 1) {
        text.append(spans[i]);
        continue;
      }
      const glyph = el("span", "hm-glyph", null, ...shortened(doc.tokens[i], SHOWN.text));
      glyph.setAttribute("aria-hidden", "true"); // every piece has it as its name
      text.append(el("span", `hm-split hm-split-${pieces[i]}`, null, ...spans.slice(i, i + pieces[i]), glyph));
    }
    if (spans.length < total - first) text.append(el("p", "hm-more", `${number(spans.length)} of ${number(total)} tokens shown`));

    // ---------------------------------------------------------------- details: one panel of constant size
    const details = el("aside", "hm-details");
    details.setAttribute("aria-label", "Selected token");
    details.tabIndex = 0; // it scrolls
    const facts = el("dl", "hm-facts");
    const title = el("p", "hm-title");
    const piece = el("p", "hm-piece");
    const top = el("ol", "hm-top");
    const parts = el("ul", "hm-parts");
    parts.setAttribute("aria-label", "Parts of the rule");
    details.append(title, piece, parts, facts, top);

    /** The values that decide a part of the rule at token `i`, as text. */
    function valuesOf(values, i) {
      if (!values.columns) return values.text ?? columnOf(values)(i) ?? "";
      const said = values.columns.map((name) => [name, columnOf(doc[name])(i) ?? "null"].map((word) => String(word) || "''"));
      return said.length === 1 ? said[0][1] : said.map((pair) => pair.join(" ")).join(", ");
    }

    /** A part of the rule at token `i`: the part, ✓ or ✗, and the values that decide it. */
    function partOf({ text: sql, holds, values }, i) {
      const [className, sign, label] = MARKS[holds[i]];
      const mark = el("span", className, sign);
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", label);
      const value = shortened(valuesOf(values, i), SHOWN.part);
      return el("li", "", null, el("span", "hm-sql", null, ...shortened(sql, SHOWN.part)), mark, el("span", "", null, ...value));
    }

    function fact(name, value, className) {
      facts.append(el("div", "", null, el("dt", "", name), el("dd", className ?? "", null, ...visible(value))));
    }

    function describe(i) {
      const reason = reasonOf(i);
      title.replaceChildren(`Position ${number(first + i)} of ${number(total)}`, el("span", `hm-badge hm-badge-${kindOf(i)}`, reason ? words(reason) : "kept"));
      piece.replaceChildren(...shortened(doc.tokens[head[i]], SHOWN.details, { alone: true }));
      piece.tabIndex = piece.scrollHeight > piece.clientHeight ? 0 : -1; // the keyboard must reach what scrolls
      facts.replaceChildren();
      fact("entropy", number(doc.entropy[i]));
      fact("loss", number(doc.nll[i]));
      fact("rank", number(doc.rank[i]));
      fact("partial", number(doc.entropy_partial[i]));
      fact("class", words(tokenClass(i) ?? "–"));
      fact("field", field(i) || "(template)");
      if (changeOf(i)) fact("change", changeOf(i), "hm-wide");
      fact("decision", reason ? doc.because?.[reason] ?? `rejected: ${words(reason)}` : "kept", "hm-wide");
      fact("bytes", RptCharacters.bytesOf(doc, i), "hm-wide");
      if (pieces[head[i]] > 1) fact("piece", `${i - head[i] + 1} of ${pieces[head[i]]} of this character`, "hm-wide");
      fact("source", `${doc.source_file} row ${number(doc.source_row)}`, "hm-wide");
      if (siteOf(i)) fact("site", siteOf(i), "hm-wide");
      parts.hidden = !doc.parts?.length;
      parts.replaceChildren(...(doc.parts ?? []).map((part) => partOf(part, i)));
      const likeliest = doc.top?.[i];
      const exact = RptCharacters.exactText(doc, i);
      top.hidden = !likeliest;
      top.replaceChildren();
      for (const [token, logprob] of likeliest ?? []) {
        const bar = el("meter", "");
        bar.max = 1;
        bar.value = Math.exp(logprob);
        bar.setAttribute("aria-label", "probability");
        const row = el("li", token === exact ? "hm-true" : "", null, el("span", "hm-likely", null, ...shortened(token, SHOWN.likely, { alone: true })), bar, el("span", "hm-probability", `${(100 * Math.exp(logprob)).toFixed(1)} %`));
        if (token === exact) row.setAttribute("aria-label", "the true token");
        top.append(row);
      }
    }

    // ---------------------------------------------------------------- hover, keyboard, click
    function select(i, focus = true) {
      spans[current].tabIndex = -1;
      spans[current].setAttribute("aria-selected", "false");
      current = Math.max(0, Math.min(spans.length - 1, i));
      spans[current].tabIndex = 0;
      spans[current].setAttribute("aria-selected", "true");
      if (focus) spans[current].focus();
      describe(current);
    }

    /** Index of the nearest token in the line above (−1) or below (+1) token `i`. */
    function acrossLines(i, direction) {
      const from = spans[i].getClientRects()[0];
      let best = i, distance = Infinity, line = null;
      for (let j = i + direction; j >= 0 && j < spans.length; j += direction) {
        const rects = spans[j].getClientRects();
        const box = direction > 0 ? rects[0] : rects[rects.length - 1];
        if (!box || Math.abs(box.top - from.top) < from.height / 2) continue;
        if (line === null) line = box.top;
        else if (Math.abs(box.top - line) > from.height / 2) break;
        const away = Math.abs((box.left + box.right - from.left - from.right) / 2);
        if (away < distance) [best, distance] = [j, away];
      }
      return best;
    }

    function kept(i, direction) {
      for (let j = i + direction; j >= 0 && j < spans.length; j += direction) if (!doc.state[j]) return j;
      return i;
    }

    /** Select a position of the document, on whichever page of it that is. */
    function go(position) {
      const i = position - first;
      if (i >= 0 && i < spans.length) select(i);
      else element.dispatchEvent(new CustomEvent("rpt:elsewhere", { bubbles: true, detail: { doc_id: doc.doc_id, position } }));
    }

    /** Go to the nearest of the hardest positions after (1) or before (−1) token `i`; at the end, to the other end. */
    function goHardest(i, direction) {
      const ordered = direction > 0 ? hard : [...hard].reverse();
      const next = ordered.find((position) => (position - first - i) * direction > 0) ?? ordered[0];
      if (next !== undefined) go(next);
    }

    /** The nearest change before (−1) or after (+1) token `i`; to one that is not shown it goes at once. */
    function change(i, direction) {
      const ahead = direction > 0 ? changed.find((position) => position > first + i) : changed.findLast((position) => position < first + i);
      if (ahead === undefined) return i;
      if (ahead >= first && ahead < first + spans.length) return ahead - first;
      go(ahead);
      return i;
    }

    function choose(i) {
      const detail = { doc_id: doc.doc_id, position: first + i, site_id: siteOf(i), reason: reasonOf(i) };
      element.dispatchEvent(new CustomEvent("rpt:site", { bubbles: true, detail }));
    }

    const MOVES = {
      ArrowRight: (i) => i + 1,
      ArrowLeft: (i) => i - 1,
      ArrowDown: (i) => acrossLines(i, 1),
      ArrowUp: (i) => acrossLines(i, -1),
      Home: () => 0,
      End: () => spans.length - 1,
      n: (i) => kept(i, 1),
      p: (i) => kept(i, -1),
      j: (i) => change(i, 1),
      k: (i) => change(i, -1),
    };
    const indexOf = (target) => {
      const span = target.closest?.(".hm-token");
      return span ? Number(span.dataset.i) : null;
    };
    text.addEventListener("keydown", (event) => {
      const i = indexOf(event.target);
      if (i === null || event.ctrlKey || event.metaKey || event.altKey) return;
      if (MOVES[event.key]) select(MOVES[event.key](i));
      else if (event.key === "Enter") choose(i);
      else if (event.key === "h") goHardest(i, 1);
      else if (event.key === "H") goHardest(i, -1);
      else return;
      event.preventDefault();
    });
    text.addEventListener("click", (event) => {
      const i = indexOf(event.target);
      if (i === null) return;
      select(i);
      choose(i);
    });
    text.addEventListener("focusin", (event) => { const i = indexOf(event.target); if (i !== null && i !== current) select(i, false); });
    text.addEventListener("mouseover", (event) => { const i = indexOf(event.target); if (i !== null) describe(i); });
    text.addEventListener("mouseleave", () => describe(current));

    function show(key) {
      metric = METRICS[key] ? key : "entropy";
      for (const [name, button] of Object.entries(buttons)) button.setAttribute("aria-pressed", String(name === metric));
      const values = doc[metric];
      spans.forEach((span, i) => {
        const step = heat(metric, values[i]);
        if (step === null) delete span.dataset.heat;
        else span.dataset.heat = step;
      });
      const { edges, unit } = METRICS[metric];
      scale.replaceChildren(
        ...[0, ...edges].map((edge, step) => {
          const cell = el("span", "hm-step", String(edge));
          cell.dataset.heat = step;
          return cell;
        }),
        el("span", "hm-unit", unit ? `${unit} and more` : "and more"),
      );
      overview?.show(metric);
      element.dispatchEvent(new CustomEvent("rpt:metric", { bubbles: true, detail: { metric } }));
    }

    const overview = doc.map ? RptMinimap.strip(doc.map, hard, total, { heat, go }) : null;
    /** Mark in the strip what the box of the text shows now. */
    function look() {
      const box = text.getBoundingClientRect();
      const inside = (span) => { const { top, bottom } = span.getBoundingClientRect(); return bottom > box.top && top < box.bottom; };
      let from = 0, to = spans.length;
      while (from < to && !inside(spans[from])) from += 1;
      while (to > from && !inside(spans[to - 1])) to -= 1;
      if (to > from) overview.look(first + from, first + to);
    }
    element.classList.add("hm");
    element.replaceChildren(toolbar, ...(overview ? [overview.element] : []), el("div", "hm-body", null, text, details));
    if (overview) {
      let waiting = 0;
      text.addEventListener("scroll", () => { waiting ||= requestAnimationFrame(() => { waiting = 0; look(); }); });
      look();
    }
    show(options.metric ?? "entropy");
    element.classList.toggle("hm-short", text.scrollHeight < SHORT);
    if (spans.length) select(current, false);
    return { show, select: (position) => select(position - first), element };
  }

  return { mount, visible, heat };
})();

/* The whole of a long document as a strip of heat, with its hardest positions and what the box of the text shows now.
 *
 *     const overview = RptMinimap.strip(doc.map, doc.hardest, total, { heat, go });   // `map`: see heatmap.js
 */
"use strict";

const RptMinimap = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  /** An SVG element with attributes. */
  function shape(tag, attributes) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  /** The strip of a document of `total` tokens. `heat(metric, value)` gives the step of the colour scale, `go(position)` is
   * called for a click. Returns { element, show(metric), look(from, to) }, in positions of `total`. */
  function strip(map, hardest, total, { heat, go }) {
    const count = map.kept.length;
    const most = Math.max(1, ...map.kept);
    const svg = shape("svg", { class: "hm-map", viewBox: `0 0 ${count} 20`, preserveAspectRatio: "none", role: "img" });
    svg.setAttribute("aria-label", "Heat of the whole document; a click goes to the place");
    const cells = map.kept.map((kept, i) => {
      const cell = shape("rect", { x: i, y: 4, width: 1.1, height: 11 });
      svg.append(cell);
      const height = (5 * kept) / most;
      if (kept) svg.append(shape("rect", { class: "hm-map-kept", x: i, y: 20 - height, width: 1, height }));
      return cell;
    });
    for (const position of hardest) svg.append(shape("rect", { class: "hm-map-hard", x: (position / total) * count, y: 0, width: 0.7, height: 3.4 }));
    const seen = shape("rect", { class: "hm-map-seen", y: 4, height: 11 });
    svg.append(seen);
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      go(Math.min(total - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * total))));
    });
    return {
      element: svg,
      show: (metric) => cells.forEach((cell, i) => {
        const step = heat(metric, map[metric][i]);
        if (step === null) delete cell.dataset.heat;
        else cell.dataset.heat = step;
      }),
      look: (from, to) => {
        seen.setAttribute("x", (from / total) * count);
        seen.setAttribute("width", Math.max(1, ((to - from) / total) * count));
      },
    };
  }

  return { strip };
})();

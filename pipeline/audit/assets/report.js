/* The report of `rpt audit`: draws the heat map of a document when it is opened; #doc-<id> and #<site id> are links. */
"use strict";

(() => {
  const list = document.getElementById("list");
  if (!list) return;
  const documents = [...list.children];
  const mounted = new Map();
  let metric = "entropy";

  function draw(details, position) {
    if (!mounted.has(details)) {
      const doc = JSON.parse(details.querySelector("script").textContent);
      const first = position ?? Math.max(0, doc.state.indexOf(0));
      mounted.set(details, RptHeatmap.mount(details.querySelector(".map"), doc, { metric, position: first }));
    } else if (position !== undefined) mounted.get(details).select(position);
  }

  for (const details of documents) {
    details.addEventListener("toggle", () => { if (details.open) draw(details); });
    details.addEventListener("rpt:metric", (event) => { metric = event.detail.metric; });
    details.addEventListener("rpt:site", (event) => {
      history.replaceState(null, "", `#${event.detail.doc_id}-${event.detail.position}`);
    });
  }

  function follow() {
    const [, id, position] = /^#(?:doc-)?([0-9a-f]{32})(?:-(\d+))?$/.exec(location.hash) ?? [];
    const details = id && document.getElementById(`doc-${id}`);
    if (!details) return;
    details.open = true;
    draw(details, position === undefined ? undefined : Number(position));
    details.scrollIntoView();
  }
  addEventListener("hashchange", follow);
  follow();

  const split = document.getElementById("split");
  const order = document.getElementById("order");
  split.addEventListener("change", () => {
    for (const details of documents) details.hidden = Boolean(split.value) && details.dataset.split !== split.value;
  });
  order.addEventListener("change", () => {
    const key = order.value;
    const sorted = key ? [...documents].sort((a, b) => b.dataset[key] - a.dataset[key]) : documents;
    list.append(...sorted);
  });
})();

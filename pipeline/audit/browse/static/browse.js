// The pages of `rpt browse`: heat maps, the selected site, and the what-if slider. Except for the heat map, every page
// also works without this script. Parts that the server renders are fetched and inserted, never rebuilt here.

const loading = new Map(); // pending requests by the element that they will fill

/** Fetch a page; null if the request failed or a later one for the same element replaced it. */
async function parts(place, url) {
  loading.get(place)?.abort();
  const request = new AbortController();
  loading.set(place, request);
  place.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(url, { signal: request.signal, headers: { Accept: "text/html" } });
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch (error) {
    if (error.name === "AbortError") return null;
    place.replaceChildren(note(`The server did not respond (${error.message}). Is it still running?`));
    return null;
  } finally {
    if (loading.get(place) === request) {
      loading.delete(place);
      place.removeAttribute("aria-busy");
    }
  }
}

function note(text) {
  const paragraph = document.createElement("p");
  paragraph.className = "problem";
  paragraph.setAttribute("role", "alert");
  paragraph.textContent = text;
  return paragraph;
}

/** Set query parameters in the URL of this page; null removes one. */
function remember(parameters) {
  const here = new URL(location.href);
  for (const [name, value] of Object.entries(parameters)) {
    if (value === null) here.searchParams.delete(name);
    else here.searchParams.set(name, value);
  }
  history.replaceState(null, "", here);
  return here;
}

// ------------------------------------------------------------------------------------------------ heat maps

async function mountHeatMap(element) {
  const asked = new URL(location.href).searchParams;
  const answer = await fetch(element.dataset.heatMap).catch(() => null);
  if (!answer?.ok) {
    element.replaceChildren(note(answer ? `The document could not be read (${answer.status}).` : "The server did not respond."));
    return;
  }
  const position = asked.get("position");
  const map = RptHeatmap.mount(element, await answer.json(), {
    metric: asked.get("metric") ?? "entropy",
    position: position === null ? undefined : Number(position),
  });
  element.addEventListener("rpt:metric", (event) => {
    remember({ metric: event.detail.metric === "entropy" ? null : event.detail.metric });
  });
  element.addEventListener("rpt:elsewhere", (event) => {
    const there = new URL(location.href);
    there.searchParams.delete("first");
    there.searchParams.set("position", event.detail.position);
    location.href = there;
  });
  if (position !== null) map.select(Number(position));
  if ("select" in element.dataset) element.addEventListener("rpt:site", (event) => showSite(event.detail.position));
}

async function showSite(position) {
  const place = document.getElementById("site");
  const page = await parts(place, remember({ position }));
  if (page) place.replaceChildren(...page.getElementById("site").childNodes);
}

document.querySelectorAll("[data-heat-map]").forEach(mountHeatMap);

// ------------------------------------------------------------------------------------------ estimates, then counts

const AGAIN = 700; // ms between requests for exact counts
let following = 0;

/** Fetch the page again as long as it shows estimates. */
function follow() {
  clearTimeout(following);
  const result = document.getElementById("result");
  if (!result?.querySelector("[data-unfinished]")) return;
  following = setTimeout(async () => {
    const page = await parts(result, location.href);
    if (!page) return;
    result.replaceChildren(...page.getElementById("result").childNodes);
    redraw(page);
    follow();
  }, AGAIN);
}

/** Draw the bars of a fetched page, without moving the focus away from them. */
function redraw(page) {
  const bars = document.querySelector(".bars");
  if (!bars || bars.contains(document.activeElement)) return;
  bars.replaceChildren(...page.querySelector(".bars").childNodes);
}

follow();

// ------------------------------------------------------------------------------------------------ compare

const NEW = 2000; // ms between looks for selections that another terminal makes
const menus = document.querySelectorAll("[data-selections]");

/** Add selections that were made since this page was opened to the menus, and offer to compare with the newest. */
async function lookForSelections() {
  setTimeout(lookForSelections, NEW);
  if (document.hidden) return;
  const answer = await fetch("/compare/selections").catch(() => null);
  if (!answer?.ok) return;
  const { current, selections } = await answer.json();
  const known = new Set(Array.from(menus[0].options, (option) => option.value));
  const fresh = selections.filter(({ name }) => !known.has(name));
  if (!fresh.length) return;
  for (const menu of menus) menu.append(...fresh.map(({ name, words }) => new Option(words, name)));
  const split = new FormData(menus[0].form).get("split");
  const link = document.createElement("a");
  link.href = `/compare?${new URLSearchParams({ a: current, b: fresh[0].name, split })}`;
  link.textContent = `Compare with the new selection: ${fresh[0].words}`;
  const offer = document.createElement("p");
  offer.className = "notice";
  offer.append(link);
  document.querySelector("[data-new-selections]").replaceChildren(offer);
}

if (menus.length) setTimeout(lookForSelections, NEW);

// ------------------------------------------------------------------------------------------------ what if

const live = document.querySelector("form[data-live]");
if (live) {
  const result = document.getElementById(live.dataset.live);
  const where = live.elements.where;
  const slider = live.querySelector("[data-slider]");
  const now = document.getElementById("entropy-now");
  let waiting = 0;

  async function ask(extra) {
    clearTimeout(waiting);
    clearTimeout(following);
    const asked = new URLSearchParams({ split: new FormData(live).get("split"), where: where.value, ...extra });
    const page = await parts(result, `/what-if?${asked}`);
    if (!page) return;
    const answer = page.getElementById("result");
    result.replaceChildren(...answer.childNodes);
    const { url, threshold } = answer.dataset;
    if (document.activeElement !== where || !extra) where.value = answer.dataset.where;
    now.textContent = page.getElementById("entropy-now").textContent;
    redraw(page);
    if (document.activeElement !== slider && threshold) slider.value = threshold;
    history.replaceState(null, "", url);
    follow();
  }

  slider.addEventListener("input", () => {
    now.textContent = `entropy > ${Number(slider.value).toFixed(2)}`;
    clearTimeout(waiting);
    waiting = setTimeout(() => ask({ entropy: slider.value }), 60);
  });
  live.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  live.addEventListener("change", (event) => {
    if (event.target.name === "split") location.href = `/what-if?split=${event.target.value}`;
    else if (event.target === where) ask();
  });
  const bars = live.querySelector(".bars");
  const about = document.getElementById("bar-now");
  const legend = [...about.childNodes];
  const BARS = { ArrowRight: (bar) => bar.nextElementSibling, ArrowLeft: (bar) => bar.previousElementSibling };
  const tell = (event) => {
    const bar = event.target.closest?.("a");
    if (bar) about.textContent = bar.getAttribute("aria-label");
  };
  const tellNothing = () => about.replaceChildren(...legend);
  bars.addEventListener("mouseover", tell);
  bars.addEventListener("mouseleave", tellNothing);
  bars.addEventListener("focusin", tell);
  bars.addEventListener("focusout", tellNothing);
  bars.addEventListener("keydown", (event) => {
    const next = BARS[event.key]?.(event.target.closest("a"));
    if (next?.localName !== "a") return;
    event.preventDefault();
    next.focus();
  });
  where.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    ask();
  });
}

addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source); // clipboard access was denied: select the text for Ctrl+C
    button.textContent = "Press Ctrl+C";
  }
});

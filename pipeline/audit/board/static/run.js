/* The Run tab: draws the charts, and follows a run that is training. In a page that was exported, the figures are in the
   page itself (#payload) and nothing is asked for. */
"use strict";

(() => {
  const place = document.getElementById("charts");
  if (!place) return;
  const AGAIN = 2000, AGAIN_WHEN_FINISHED = 15_000; // ms between requests
  let version = "", drawn = new Map();

  function figure(chart) {
    const found = [...place.children].find((child) => child.dataset.chart === chart.key);
    if (found) return found;
    const made = document.getElementById("chart").content.firstElementChild.cloneNode(true);
    made.dataset.chart = chart.key;
    made.querySelector("h3").textContent = chart.title;
    made.querySelector(".note").textContent = chart.note;
    return made;
  }

  function show(charts) {
    const figures = charts.map((chart) => {
      const own = figure(chart), text = JSON.stringify(chart);
      if (drawn.get(chart.key) !== text) {
        RptCharts.draw(own, chart);
        drawn.set(chart.key, text);
      }
      return own;
    });
    if (figures.length !== place.children.length || figures.some((own, i) => place.children[i] !== own)) place.replaceChildren(...figures);
    document.getElementById("no-charts").hidden = charts.length > 0;
  }

  /** Fetch this page again and replace what the server renders; what someone reads stays. */
  async function renew() {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const id of ["summary", "rollouts"]) {
      const own = document.getElementById(id), next = page.getElementById(id);
      if (own && next && !own.contains(document.activeElement) && own.textContent !== next.textContent) own.replaceChildren(...next.childNodes);
    }
  }

  function ages(runs) {
    document.querySelectorAll("[data-age]").forEach((element) => {
      const age = runs[Number(element.dataset.age)]?.age;
      if (typeof age !== "number") return;
      const unit = [[86_400, "d"], [3600, "h"], [60, "min"], [0, "s"]].find(([least]) => age >= least);
      element.textContent = `${Math.floor(age / (unit[0] || 1))} ${unit[1]} ago`;
    });
  }

  async function follow() {
    let wait = AGAIN;
    const problem = document.getElementById("problem");
    try {
      const answer = document.hidden ? null : await fetch(`${place.dataset.source}&since=${encodeURIComponent(version)}`);
      if (answer && !answer.ok) throw new Error(`status ${answer.status}`);
      const data = await answer?.json();
      if (data?.charts) {
        const first = version === "";
        version = data.version;
        show(data.charts);
        if (!first) await renew();
      }
      if (data) {
        ages(data.runs);
        wait = data.more ? 0 : data.runs.every((run) => run.finished) ? AGAIN_WHEN_FINISHED : AGAIN;
      }
      problem.hidden = true;
    } catch (error) {
      problem.textContent = `The server did not respond (${error.message}). Is it still running?`;
      problem.hidden = false;
    }
    place.removeAttribute("aria-busy");
    setTimeout(follow, wait);
  }

  /** Show the rollouts of a step that was clicked in a chart. */
  async function showStep(step) {
    const there = new URL(location.href);
    there.searchParams.set("step", step);
    history.replaceState(null, "", there);
    await renew();
    document.getElementById("rollouts").scrollIntoView();
  }

  const exported = document.getElementById("payload");
  if (exported) {
    show(JSON.parse(exported.textContent).charts);
    place.removeAttribute("aria-busy");
  } else {
    place.addEventListener("rpt:step", (event) => showStep(event.detail.step));
    follow();
  }
})();

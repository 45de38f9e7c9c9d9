/* Charts of the Run tab as SVG: lines with intervals and level lines, or stacked areas. Everything that is written comes
   as a text node. Colours and dashes are classes of board.css; a legend names every curve and shows its values. */
"use strict";

const RptCharts = (() => {
  const WIDTH = 400, HEIGHT = 190, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22;
  const BAR = 40; // width of the bar of a single step
  const MARKED = 40; // curves of at most so many points have a mark on each

  function element(tag, attributes = {}, text = null) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== null) made.textContent = text;
    return made;
  }

  /** A number with its unit, as legends show it. */
  function formatted(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit === "share") return `${(100 * value).toFixed(1)} %`.replace("-", "−");
    const size = Math.abs(value);
    const number = size && (size < 1e-3 || size >= 1e7)
      ? value.toExponential(2)
      : value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 6 : 4 });
    return (unit ? `${number} ${unit}` : number).replace("-", "−");
  }

  /** The round number that divides a range into about `count` parts. */
  function tickSize(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    return [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  }

  /** The multiples of a round number in [low, high]. */
  function ticks(low, high, count) {
    const step = tickSize(low, high, count), found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(Number((n * step).toPrecision(12)));
    return found;
  }

  function tickLabel(value, unit) {
    if (unit === "share") return `${Number((100 * value).toPrecision(6))} %`;
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e7)) return value.toExponential(1).replace(".0e", "e").replace("-", "−");
    return value.toLocaleString("en", { maximumSignificantDigits: 4, notation: size >= 10_000 ? "compact" : "standard" }).replace("-", "−");
  }

  /** The series of a stacked chart with `base`, the sum of those below, and `top`. */
  function stacked(series) {
    let below = series[0].x.map(() => 0);
    return series.map((one) => {
      const base = below;
      below = one.y.map((value, i) => value + base[i]);
      return { ...one, base, top: below };
    });
  }

  function extent(lists) {
    let low = Infinity, high = -Infinity;
    for (const list of lists) {
      for (const value of list) {
        if (value === null || value === undefined) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    return [low, high];
  }

  /** Linear scales of a chart: `x` and `y` map data to the drawing. */
  function scales(chart, series) {
    const [first, last] = extent(series.map((one) => one.x));
    const shown = series.flatMap((one) => (one.top ? [one.top] : [one.y, one.low ?? [], one.high ?? [], [one.level]]));
    let [low, high] = extent([...shown, [0]]);
    if (chart.unit === "share") high = Math.min(high, 1); // rounded shares may add up to a little more
    if (low === high) high = low + (chart.unit === "share" ? 0.1 : 1);
    const size = tickSize(low, high, 4); // the axis ends at round numbers, so no curve runs along its edge
    [low, high] = [Math.floor(low / size + 1e-9) * size, Math.ceil(high / size - 1e-9) * size];
    const across = (value) => (first === last ? 0.5 : (value - first) / (last - first)); // a single step is in the middle
    return {
      first, last, low, high,
      x: (value) => LEFT + across(value) * (WIDTH - LEFT - RIGHT),
      y: (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM),
    };
  }

  const point = (scale, x, y) => `${scale.x(x).toFixed(1)},${scale.y(y).toFixed(1)}`;
  const line = (scale, xs, ys) => xs.map((x, i) => point(scale, x, ys[i])).join("L");

  function area(scale, xs, lows, highs) {
    const known = xs.map((_, i) => i).filter((i) => lows[i] !== null && highs[i] !== null);
    if (scale.first === scale.last) { // a bar, because the area of a single step has no width
      return known.map((i) => `M${scale.x(xs[i]) - BAR / 2},${scale.y(highs[i])}h${BAR}V${scale.y(lows[i])}h${-BAR}Z`).join("");
    }
    const over = known.map((i) => point(scale, xs[i], highs[i]));
    const under = known.map((i) => point(scale, xs[i], lows[i])).reverse();
    return `M${[...over, ...under].join("L")}Z`;
  }

  function axes(svg, chart, scale) {
    for (const value of ticks(scale.low, scale.high, 4)) {
      const y = scale.y(value);
      svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
      svg.append(element("text", { class: "tick", x: LEFT - 5, y: y + 3.5, "text-anchor": "end" }, tickLabel(value, chart.unit)));
    }
    const steps = scale.first === scale.last ? [scale.first] : ticks(scale.first, scale.last, 4).filter(Number.isInteger);
    for (const step of steps) {
      const anchor = scale.x(step) > WIDTH - 30 ? "end" : "middle";
      svg.append(element("text", { class: "tick", x: scale.x(step), y: HEIGHT - 6, "text-anchor": anchor }, step.toLocaleString("en")));
    }
  }

  function curve(svg, scale, one) {
    const slot = `slot-${one.slot % 8}`;
    if (one.top) {
      svg.append(element("path", { class: `area ${slot}`, d: area(scale, one.x, one.base, one.top) }));
      return;
    }
    if (one.low) svg.append(element("path", { class: `interval ${slot}`, d: area(scale, one.x, one.low, one.high) }));
    if (typeof one.level === "number") {
      const y = scale.y(one.level);
      svg.append(element("line", { class: `level ${slot}`, x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
    }
    svg.append(element("path", { class: `curve ${slot}`, d: `M${line(scale, one.x, one.y)}` }));
    if (one.x.length > MARKED) return;
    one.x.forEach((x, i) => svg.append(element("circle", { class: `mark ${slot}`, cx: scale.x(x), cy: scale.y(one.y[i]), r: scale.first === scale.last ? 4 : 2.2 })));
  }

  /** The index of the point nearest to a step; `x` ascends. */
  function nearest(x, step) {
    let low = 0, high = x.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (x[middle] <= step) low = middle;
      else high = middle;
    }
    return step - x[low] <= x[high] - step ? low : high;
  }

  function legend(figure, series) {
    const entries = series.map((one) => {
      const entry = document.createElement("li");
      const swatch = element("svg", { class: "swatch", viewBox: "0 0 22 8", "aria-hidden": "true" });
      const shape = one.top ? { class: `area slot-${one.slot % 8}`, d: "M0,0H22V8H0Z" } : { class: `curve slot-${one.slot % 8}`, d: "M0,4H22" };
      swatch.append(element("path", shape));
      const label = document.createElement("span");
      label.textContent = one.label;
      label.title = one.label; // long names are cut
      entry.append(swatch, label, document.createElement("b"));
      return entry;
    });
    figure.querySelector(".legend").replaceChildren(...entries);
    return entries.map((entry) => entry.querySelector("b"));
  }

  const interval = (one, i, unit) => (one.low?.[i] == null ? "" : ` [${formatted(one.low[i], unit)}, ${formatted(one.high[i], unit)}]`);
  const level = (one, unit) => (typeof one.level === "number" ? `, direct ${formatted(one.level, unit)}` : "");

  /** Draw a chart into its figure, and let pointer and arrow keys read it. A click, or Enter, is an `rpt:step` event. */
  function draw(figure, chart) {
    const svg = figure.querySelector("svg.plot"), output = figure.querySelector("output");
    const series = chart.stacked ? stacked(chart.series) : chart.series;
    const scale = scales(chart, series), values = legend(figure, series);
    svg.replaceChildren();
    axes(svg, chart, scale);
    // Those above hide those below: the first of a stack comes last.
    for (const one of chart.stacked ? [...series].reverse() : series) curve(svg, scale, one);
    const cursor = element("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    svg.append(cursor);
    const longest = series.reduce((best, one) => (one.x.length > best.x.length ? one : best));

    function read(step, shown) {
      const texts = series.map((one, n) => {
        const i = shown ? nearest(one.x, step) : one.x.length - 1;
        const value = shown ? one.y[i] : one.last;
        values[n].textContent = `${formatted(value, chart.unit)}${level(one, chart.unit)}`;
        return `${one.label} ${formatted(value, chart.unit)}${interval(one, i, chart.unit)}${level(one, chart.unit)}`;
      });
      output.textContent = `step ${step.toLocaleString("en")}`;
      cursor.setAttribute("visibility", shown ? "visible" : "hidden");
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, scale.x(step));
      return `step ${step.toLocaleString("en")}: ${texts.join("; ")}`;
    }

    svg.setAttribute("aria-label", `${chart.title}, ${read(scale.last, false)}`);
    let at = longest.x.length - 1;
    svg.onpointermove = (event) => {
      const box = svg.getBoundingClientRect();
      const share = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
      at = nearest(longest.x, scale.first + share * (scale.last - scale.first));
      read(longest.x[at], true);
    };
    svg.onpointerleave = () => read(scale.last, false);
    svg.onblur = () => read(scale.last, false);
    const choose = () => svg.dispatchEvent(new CustomEvent("rpt:step", { bubbles: true, detail: { step: longest.x[at] } }));
    svg.onclick = (event) => {
      if (event.pointerType !== "touch") choose(); // a finger reads the chart by touching it
    };
    svg.onkeydown = (event) => {
      if (event.key === "Enter") choose();
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: longest.x.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      at = Math.min(Math.max(to, 0), longest.x.length - 1);
      figure.querySelector(".spoken").textContent = read(longest.x[at], true);
    };
  }

  return { draw, formatted };
})();

"use strict";

// Draws one measure over time: a line for the mean of the accepted frames, a band from their
// lowest to their highest, and a dot for those that were refused.
const Curves = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const AXIS_PX = 17;
  const BREAK = 4; // medians of the distance between points: a longer gap breaks the line

  function draw(svg, quality, name, format) {
    const width = svg.clientWidth, height = svg.clientHeight;
    if (!width || !height) return;
    const curve = quality[name], ago = quality.ago_s, span = quality.span_s;
    const bottom = height - AXIS_PX - 6, top = 5;
    const x = (seconds) => width - 1 - (seconds / span) * (width - 2);
    const having = (values) => ago.map((_, i) => i).filter((i) => values[i] !== null && ago[i] <= span);
    const known = having(curve.mean), refused = having(curve.refused);
    const [low, high] = known.length ? range(known, curve.mean) : range(refused, curve.refused);
    // What lies far off is drawn at the edge.
    const y = (value) => Math.min(bottom, Math.max(top, bottom - ((value - low) / (high - low)) * (bottom - top)));

    const parts = [element("line", { class: "base", x1: 0, x2: width, y1: height - AXIS_PX, y2: height - AXIS_PX })];
    for (const run of runs(known, ago)) {
      // A point alone gets the width of a dot.
      const wide = run.length === 1 ? [-1.5, 1.5] : [0];
      const edge = (values) => run.flatMap((i) => wide.map((by) => `${(x(ago[i]) + by).toFixed(1)},${y(values[i]).toFixed(1)}`));
      parts.push(element("path", { class: "band", d: `M${edge(curve.high).join("L")}L${edge(curve.low).reverse().join("L")}Z` }));
      parts.push(element("path", { class: "mean", d: `M${edge(curve.mean).join("L")}` }));
    }
    for (const i of refused) {
      const off = curve.refused[i] < low || curve.refused[i] > high;
      parts.push(element("circle", { class: off ? "refused off" : "refused", r: off ? 1.2 : 1.6, cx: x(ago[i]).toFixed(1), cy: y(curve.refused[i]).toFixed(1) }));
    }
    parts.push(label(0, height - 3, "start", `${span / 60} min ago`), label(width, height - 3, "end", "now"));
    if (known.length) {
      const ends = [extreme(known, curve.low, Math.min), extreme(known, curve.high, Math.max)].map(format);
      parts.push(label(width / 2, height - 3, "middle", ends[0] === ends[1] ? ends[0] : ends.join(" to ")));
    }
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...parts);
  }

  function extreme(known, values, pick) {
    return known.reduce((found, i) => pick(found, values[i]), values[known[0]]);
  }

  // The means of accepted frames decide the scale: one frame far off would flatten the line.
  function range(known, values) {
    if (!known.length) return [0, 1];
    const low = extreme(known, values, Math.min), high = extreme(known, values, Math.max);
    const room = Math.max(0.35 * (high - low), 0.04 * Math.abs(high), 1e-4);
    const least = low >= 0 && low < room ? 0 : low - room;
    return [least, high + room];
  }

  function runs(known, ago) {
    const steps = known.slice(1).map((i, k) => ago[known[k]] - ago[i]).sort((a, b) => a - b);
    const longest = BREAK * (steps[steps.length >> 1] || 1) + 0.5;
    const found = [];
    known.forEach((i, k) => {
      if (!k || ago[known[k - 1]] - ago[i] > longest) found.push([]);
      found[found.length - 1].push(i);
    });
    return found;
  }

  function label(x, y, anchor, text) {
    const node = element("text", { x, y, "text-anchor": anchor });
    node.textContent = text;
    return node;
  }

  function element(name, attributes) {
    const node = document.createElementNS(SVG, name);
    for (const key of Object.keys(attributes)) node.setAttribute(key, attributes[key]);
    return node;
  }

  return { draw };
})();

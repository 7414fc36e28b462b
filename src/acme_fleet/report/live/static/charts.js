"use strict";
// Small charts in SVG. Colours are classes, so that they follow the page; text is only ever text.

const SVG = "http://www.w3.org/2000/svg";

const shape = (name, attributes, text) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};

const bytes = (size) => {
  if (size === null || size === undefined) return "–";
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (size < 999.5) return `${Number(size.toPrecision(3))} ${unit}`;
    size /= 1000;
  }
  return `${Number(size.toPrecision(3))} TB`;
};

const duration = (seconds) => {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
};

const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);

// Bars of bytes over time.
const drawFlow = (svg, flow, label) => {
  svg.setAttribute("viewBox", `0 0 ${Math.max(1, flow.length)} 10`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-label", label);
  const most = Math.max(1, ...flow);
  svg.replaceChildren(
    ...flow.flatMap((size, i) => {
      if (!size) return [];
      const height = 1 + 9 * Math.sqrt(size / most);
      return [shape("rect", { class: "bar", x: i + 0.1, y: 10 - height, width: 0.8, height })];
    }),
  );
};

const frame = (svg, label, low, high, bottom) => {
  const [width, height, left, right, top, foot] = [420, 200, 44, 10, 10, 36];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", label);
  const y = (value) => top + (height - top - foot) * (1 - (value - low) / (high - low || 1));
  const parts = [];
  for (let i = 0; i <= 4; i += 1) {
    const value = low + ((high - low) * i) / 4;
    parts.push(shape("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    parts.push(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, bottom.format(value)));
  }
  parts.push(shape("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, bottom.label));
  return { parts, y, left, right: width - right, height, foot };
};

// Lines over steps: {name, color, points: [[step, value]], end: value or null}.
const drawLines = (svg, series, about) => {
  const values = series.flatMap((one) => [...one.points.map(([, v]) => v), ...(one.end == null ? [] : [one.end])]);
  if (!values.length) return;
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const room = Math.max(0.02, 0.06 * (high - low));
  [low, high] = [Math.max(0, low - room), Math.min(1, high + room)];
  const steps = Math.max(about.steps || 0, ...series.flatMap((one) => one.points.map(([s]) => s)));
  const first = Math.min(...series.flatMap((one) => one.points.map(([s]) => s)));
  const plot = frame(svg, about.label, low, high, { label: about.below, format: (v) => `${Math.round(100 * v)} %` });
  const x = (step) => plot.left + 8 + ((plot.right - plot.left - 24) * (step - first)) / Math.max(1, steps - first);
  for (const one of series) {
    const points = one.points.map(([s, v]) => `${x(s).toFixed(1)},${plot.y(v).toFixed(1)}`).join(" ");
    plot.parts.push(shape("polyline", { class: `line s${one.color}`, points }));
    const [step, value] = one.points[one.points.length - 1];
    const dot = shape("circle", { class: `f${one.color}`, cx: x(step), cy: plot.y(value), r: 3 });
    dot.append(shape("title", {}, `${one.name}: ${percent(value)}`));
    plot.parts.push(dot);
    if (one.end != null) {
      const ring = shape("circle", { class: `open s${one.color}`, cx: plot.right - 4, cy: plot.y(one.end), r: 4 });
      ring.append(shape("title", {}, `${one.name}, final: ${percent(one.end)}`));
      plot.parts.push(ring);
    }
  }
  for (let s = first; s <= steps && steps - first <= 12; s += 1) {
    plot.parts.push(shape("text", { x: x(s), y: plot.height - plot.foot + 14, "text-anchor": "middle" }, s));
  }
  svg.replaceChildren(...plot.parts);
};

// Candidates of one choice: loss against size.
const drawFront = (svg, choice, color, label) => {
  const all = choice.candidates;
  const losses = all.map((one) => one.loss);
  const [least, worst] = [Math.min(...losses), Math.max(...losses)], room = 0.08 * (worst - least) || 0.05;
  const plot = frame(svg, label, least - room, worst + room, {
    label: "size", format: (v) => v.toFixed(2),
  });
  const most = 1.05 * Math.max(...all.map((one) => one.size_bytes));
  const x = (size) => plot.left + 6 + ((plot.right - plot.left - 12) * size) / most;
  const energy = Math.max(...all.map((one) => one.energy_j)) || 1;
  for (const one of all) {
    const kind = one.on_front ? `f${color}` : one.feasible ? `open s${color}` : "grey";
    const r = 2.5 + 4 * Math.sqrt(one.energy_j / energy);
    const circle = shape("circle", { class: kind, cx: x(one.size_bytes), cy: plot.y(one.loss), r });
    const cut = `width ${one.width}, depth ${one.depth}${one.hidden < 1 ? `, hidden ${one.hidden}` : ""}, ${one.precision}`;
    circle.append(shape("title", {}, `${cut}: ${bytes(one.size_bytes)}, loss ${one.loss.toFixed(3)}`));
    plot.parts.push(circle);
    if (one.chosen) plot.parts.push(shape("circle", { class: "pick", cx: x(one.size_bytes), cy: plot.y(one.loss), r: r + 3 }));
  }
  const foot = plot.height - plot.foot + 14;
  plot.parts.push(shape("text", { x: x(0), y: foot }, "0"));
  plot.parts.push(shape("text", { x: plot.right, y: foot, "text-anchor": "end" }, bytes(most)));
  if (choice.limit_bytes < most) {
    const at = x(choice.limit_bytes);
    plot.parts.push(shape("line", { class: "limit", x1: at, x2: at, y1: 10, y2: plot.height - plot.foot }));
    plot.parts.push(shape("text", { x: Math.min(at + 4, plot.right - 50), y: 20 }, `limit ${bytes(choice.limit_bytes)}`));
  }
  svg.replaceChildren(...plot.parts);
};

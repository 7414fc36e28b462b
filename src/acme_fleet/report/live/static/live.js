"use strict";
// Follows the runs that are chosen; what is chosen is kept in the address, so that a reload keeps it.

const MARKS = { running: "●", finished: "✓", failed: "✗", interrupted: "‖", stopped: "■", unreadable: "?" };
const SHOWN = { edges: 24, devices: 120, lines: 40, choices: 6 };
const cards = new Map(); // a run's id → its article
let chosen = null; // ids, in their order; null until the address or the list has told
let source = null;
let listed = [];

const el = (name, text, className) => {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
};

const byAddress = () => {
  const text = decodeURIComponent(location.hash.slice(1));
  return text.startsWith("runs=") ? text.slice(5).split("|").filter(Boolean) : null;
};

// --- which runs ---

const choose = (ids) => {
  chosen = ids.slice(0, 8);
  history.replaceState(null, "", `#${encodeURIComponent(`runs=${chosen.join("|")}`)}`);
  for (const [id, card] of cards) {
    if (!chosen.includes(id)) { card.remove(); cards.delete(id); }
  }
  connect();
};

const showList = (runs) => {
  listed = runs;
  document.getElementById("none").hidden = runs.length > 0;
  document.getElementById("picker").hidden = runs.length === 0;
  if (chosen === null || (chosen.length === 0 && byAddress() === null)) {
    const busy = runs.filter((run) => run.status === "running");
    const first = (busy.length ? busy : runs.slice(0, 1)).map((run) => run.id);
    if (first.length) choose(first);
  }
  const box = document.getElementById("choices");
  const old = new Map([...box.children].map((label) => [label.dataset.id, label]));
  const labels = runs.map((run) => {
    const label = old.get(run.id) || el("label");
    if (!old.has(run.id)) {
      label.dataset.id = run.id;
      const check = el("input");
      check.type = "checkbox";
      check.addEventListener("change", () => {
        const others = chosen.filter((id) => id !== run.id);
        choose(check.checked ? [...others, run.id] : others);
      });
      label.append(check, el("span"));
    }
    label.firstChild.checked = (chosen || []).includes(run.id);
    const what = run.kind === "distill" ? ", distillation" : "";
    label.lastChild.textContent = `${MARKS[run.status]} ${run.id}${what} (${run.status})`;
    return label;
  });
  // Nodes that are in their place stay there, and keep the focus.
  if (labels.length !== box.children.length || labels.some((label, i) => box.children[i] !== label)) {
    box.replaceChildren(...labels);
  }
};

// --- one run ---

const part = (card, path) => card.querySelector(path);

const fill = (list, items) => list.replaceChildren(...items);

const rows = (body, cells) => fill(body, cells.map((row) => {
  const line = el("tr");
  line.append(...row.map((text) => el("td", text)));
  return line;
}));

const wholeRun = ({ done, left }) => {
  const item = el("li", "the whole run ", "whole"), bar = el("progress");
  bar.setAttribute("aria-label", "the whole run");
  bar.value = done;
  item.append(bar, el("span", `${Math.round(100 * done)} %${left ? `, ${left}` : ""}`, "note"));
  return item;
};

const showHead = (card, run) => {
  part(card, "h2").textContent = run.name + (run.seed === undefined ? "" : `, seed ${run.seed}`);
  card.setAttribute("aria-label", `Run ${run.id}`);
  const badge = part(card, ".badge");
  const text = `${MARKS[run.status]} ${run.status}`;
  if (badge.textContent !== text) badge.textContent = text;
  badge.className = `badge ${run.status}`;
  const trouble = part(card, ".trouble");
  const bad = !["running", "finished"].includes(run.status);
  if (trouble.hidden === bad) trouble.hidden = !bad;
  const told = bad ? `${run.reason || "It was interrupted."}\n${run.resume}` : "";
  if (trouble.dataset.told !== told) { // an alert is read aloud when it changes, and only then
    trouble.dataset.told = told;
    trouble.replaceChildren(`${run.reason || "It was interrupted"}. Go on: `, el("code", run.resume));
  }
  const report = part(card, ".report");
  if (run.kind === "fleet") {
    report.hidden = !(run.report && run.status === "finished");
    report.setAttribute("href", `/runs/${encodeURIComponent(run.id)}/report`);
  }
  part(card, ".now").hidden = run.status !== "running";
  const now = run.now || [];
  const whole = run.whole ? [wholeRun(run.whole)] : [];
  fill(part(card, ".now ul"), [...whole, ...(now.length ? now.slice(0, 12).map((stage) => {
    const item = el("li");
    item.append(el("span", `${stage.actor}: ${stage.stage} `));
    const bar = el("progress");
    bar.setAttribute("aria-label", `${stage.actor}: ${stage.stage}`);
    if (stage.total > 1) { bar.max = stage.total; bar.value = stage.done; }
    item.append(bar);
    const note = [stage.total > 1 ? `${stage.done} of ${stage.total}` : "", stage.note].filter(Boolean).join(", ");
    if (note) item.append(el("span", note, "note"));
    return item;
  }) : [el("li", "between two stages")])]);
};

const chips = (list, items, most) => {
  const shown = items.slice(0, most).map(({ name, kind, title, color }) => {
    const chip = el("li", name, kind);
    if (color !== undefined) chip.prepend(el("i", "", `key k${color}`));
    chip.title = title;
    return chip;
  });
  if (items.length > most) shown.push(el("li", `and ${items.length - most} more`, "more"));
  fill(list, shown);
};

const linkText = (link, up) => {
  const kinds = link.kinds.filter((kind) => kind.up === up);
  const sum = (key) => kinds.reduce((total, kind) => total + kind[key], 0);
  return `${up ? "↑ up" : "↓ down"} ${bytes(sum("bytes"))} in ${sum("messages")} messages`;
};

const showTiers = (card, run) => {
  const busy = new Map((run.now || []).map((stage) => [stage.actor, stage.stage]));
  const over = run.status === "finished";
  part(card, ".cloud .at").textContent =
    busy.get("cloud") || (over ? "done" : run.status === "running" ? "waits for its edge servers" : "stopped");
  const state = (name, lost, done) => (lost ? "lost" : busy.has(name) ? "busy" : done ? "done" : "");
  const color = colors(run);
  chips(part(card, ".edges ul"), run.edges.map((edge) => {
    const own = [...busy].find(([actor]) => actor === edge.name || actor.startsWith(`${edge.name}:`));
    const at = own ? own[1] : edge.at || "waits";
    return { name: `${edge.name}${own ? `: ${own[1]}` : ""}`, kind: own ? "busy" : over ? "done" : "", color: color.get(edge.name), title: `${edge.devices} devices; ${at}` };
  }), SHOWN.edges);
  chips(part(card, ".devices ul"), run.devices.map((device) => {
    const words = device.lost ? `lost: ${device.lost}` : busy.get(device.name) || device.at || "waits";
    const last = device.accuracy ?? device.scores.at(-1)?.[1];
    const name = `${device.name}${device.lost ? " lost" : last === undefined || last === null ? "" : ` ${percent(last)}`}`;
    return { name, kind: state(device.name, device.lost, device.accuracy !== null), title: `${words}; limit ${bytes(device.limit_bytes)}` };
  }), SHOWN.devices);
  ["cloud", "device"].forEach((tier, i) => {
    const box = card.querySelectorAll(".link")[i], link = run.links[tier];
    part(box, ".down").textContent = linkText(link, false);
    part(box, ".up").textContent = linkText(link, true);
    const ends = tier === "cloud" ? "cloud and edge servers" : "edge servers and devices";
    drawFlow(part(box, "svg"), link.flow, `Bytes between ${ends} over time`);
  });
};

const colors = (run) => new Map(run.edges.map((edge, i) => [edge.name, i % 8]));

const showAccuracy = (card, run) => {
  const box = part(card, ".accuracy"), told = run.devices.filter((device) => device.scores.length);
  box.hidden = !told.length;
  if (!told.length) return;
  const color = colors(run);
  drawLines(part(box, "svg"), told.slice(0, SHOWN.lines).map((device) => ({
    name: device.name, color: color.get(device.cluster) ?? 0, points: device.scores, end: device.accuracy,
  })), { label: `Validation accuracy of ${told.length} devices by round`, below: "round; the last is the fine-tuning at the end", steps: run.rounds + 1 });
  const last = Math.max(...told.flatMap((device) => device.scores.map(([step]) => step)));
  const head = el("tr");
  head.append(...["device", ...Array.from({ length: last }, (_, i) => (i < run.rounds ? `round ${i + 1}` : "fine-tuning")), "final, test"].map((text) => {
    const cell = el("th", text);
    cell.scope = "col";
    return cell;
  }));
  fill(part(box, "thead"), [head]);
  rows(part(box, "tbody"), told.map((device) => {
    const by = new Map(device.scores);
    return [device.name, ...Array.from({ length: last }, (_, i) => percent(by.get(i + 1))), percent(device.accuracy)];
  }));
};

const showChoice = (card, run) => {
  const box = part(card, ".choice"), color = colors(run);
  box.hidden = !run.choices.length;
  const plots = part(box, ".plots");
  const told = JSON.stringify(run.choices);
  if (box.dataset.told === told) return;
  box.dataset.told = told;
  fill(plots, run.choices.slice(0, SHOWN.choices).map((choice) => {
    const figure = el("div"), svg = shape("svg", { role: "img" });
    const pick = choice.candidates.find((one) => one.chosen);
    const fits = choice.candidates.filter((one) => one.feasible).length;
    const words = `${choice.edge}: ${fits} of ${choice.candidates.length} fit; chosen: width ${pick.width}, depth ${pick.depth}, ${pick.precision}`;
    drawFront(svg, choice, color.get(choice.edge) ?? 0, `Candidates of ${words}`);
    figure.append(el("p", words, "note"), svg);
    return figure;
  }));
};

const showRewards = (card, run) => {
  const box = part(card, ".reward"), named = Object.entries(run.rewards), color = colors(run);
  box.hidden = !named.length;
  if (named.length) {
    drawLines(part(box, "svg"), named.slice(0, SHOWN.lines).map(([name, points]) => ({
      name, color: color.get(name.split(":")[0]) ?? 0, points, end: null,
    })), { label: `Mean reward of each step of the search: ${named.map(([name, p]) => `${name} ${percent(p.at(-1)[1])}`).join(", ")}`, below: "step of the search" });
  }
};

const showFleet = (card, run) => {
  const seconds = run.status === "running" && run.began_s ? Date.now() / 1000 - run.began_s : run.elapsed_s;
  const result = run.result;
  const done = result && result.accuracy !== null
    ? `; ${result.devices} devices, ${percent(result.accuracy)} right on average, ${[...new Set([result.smallest, result.largest].map(bytes))].join(" to ")}` : "";
  part(card, ".time").textContent = `${duration(seconds)}${done}`;
  showTiers(card, run);
  showAccuracy(card, run);
  showChoice(card, run);
  showRewards(card, run);
  const faults = part(card, ".faults");
  faults.hidden = !run.fault_count;
  if (faults.dataset.count !== String(run.fault_count)) {
    faults.dataset.count = run.fault_count;
    fill(part(faults, "ul"), run.faults.slice().reverse().map((one) => {
      const about = one.about === one.actor ? one.about : `${one.about}, noticed by ${one.actor}`;
      return el("li", `${about}: ${one.fault}`);
    }));
    part(faults, "h3").textContent = `Faults (${run.fault_count})`;
  }
  const kinds = ["cloud", "device"].flatMap((tier) => run.links[tier].kinds.map((kind) => [tier, kind]));
  part(card, ".traffic").hidden = !kinds.length;
  rows(part(card, ".traffic tbody"), kinds.map(([tier, kind]) => {
    const way = tier === "cloud" ? (kind.up ? "edge → cloud" : "cloud → edge") : kind.up ? "device → edge" : "edge → device";
    return [kind.type, way, kind.messages, bytes(kind.bytes)];
  }));
  fill(part(card, ".latest"), run.latest.slice().reverse().map((one) => {
    const time = new Date(one.time).toLocaleTimeString();
    return el("li", `${time} ${one.text}${one.bytes === null ? "" : `, ${bytes(one.bytes)}`}`);
  }));
  part(card, ".stages").hidden = !run.stages.length;
  rows(part(card, ".stages tbody"), run.stages.map((one) => [one.stage, one.times, one.seconds.toFixed(1)]));
};

const showDistillation = (card, run) => {
  const told = run.chosen;
  part(card, ".pair").hidden = !told;
  if (told) {
    const by = told.by === "logits" ? "the teacher’s logits" : "answers";
    const pairs = [["teacher", told.teacher], ["student", told.student], ["learns from", by], ["server", `${told.server}, ${told.usd_per_hour} USD/h`]];
    fill(part(card, ".pair dl"), pairs.flatMap(([key, value]) => [el("dt", key), el("dd", value)]));
  }
  const spent = run.spent || { training_s: 0, evaluation_s: 0 };
  part(card, ".time").textContent = duration(spent.training_s + spent.evaluation_s);
  const budget = run.budget_s ? ` of ${duration(run.budget_s)}` : "";
  const planned = told ? `; predicted ${duration(told.training_s.value)} (${duration(told.training_s.low)} to ${duration(told.training_s.high)})` : "";
  part(card, ".spent").textContent = `Training ${duration(spent.training_s)}${budget}${planned}; evaluation ${duration(spent.evaluation_s)}; ${(run.usd || 0).toFixed(4)} USD`;
  const bar = part(card, ".budget progress");
  bar.hidden = !run.budget_s;
  if (run.budget_s) {
    bar.setAttribute("aria-label", "Budget that is spent");
    bar.max = run.budget_s;
    bar.value = Math.min(run.budget_s, spent.training_s);
  }
  part(card, ".marks").hidden = !run.result;
  if (run.result) {
    const names = { student: "student", start: "student before training", teacher: "teacher" };
    rows(part(card, ".marks tbody"), Object.entries(names).map(([key, name]) => {
      const one = run.result[key];
      return [name, `${one.right} of ${one.asked}`, `${percent(one.low)} to ${percent(one.high)}`];
    }));
  }
};

const showRun = (run) => {
  if (!chosen || !chosen.includes(run.id)) return;
  let card = cards.get(run.id);
  if (!card) {
    card = document.getElementById(run.kind).content.cloneNode(true).firstElementChild;
    cards.set(run.id, card);
    const place = chosen.slice(0, chosen.indexOf(run.id)).filter((id) => cards.has(id)).length;
    document.getElementById("runs").insertBefore(card, document.querySelectorAll("article")[place] || null);
  }
  showHead(card, run);
  const whole = run.kind === "fleet" ? run.links !== undefined : run.spent !== undefined;
  card.querySelectorAll(".tiers").forEach((box) => { box.hidden = !whole; });
  if (whole) (run.kind === "fleet" ? showFleet : showDistillation)(card, run);
  document.title = chosen.length === 1 ? `${MARKS[run.status]} ${run.name} · ACME` : "ACME runs";
};

// --- the stream ---

const tell = (text, lost) => {
  const line = document.getElementById("line");
  if (line.textContent !== text) line.textContent = text;
  line.classList.toggle("lost", lost);
};

function connect() {
  if (source) source.close();
  const query = (chosen || []).map((id) => `run=${encodeURIComponent(id)}`).join("&");
  source = new EventSource(`/api/stream?${query}`);
  source.addEventListener("open", () => tell("live", false));
  source.addEventListener("error", () => tell("no answer from acme ui; what is shown may be old. Trying again …", true));
  source.addEventListener("runs", (event) => showList(JSON.parse(event.data)));
  source.addEventListener("run", (event) => showRun(JSON.parse(event.data)));
}

chosen = byAddress();
window.addEventListener("hashchange", () => {
  const ids = byAddress();
  if (ids && ids.join("|") !== (chosen || []).join("|")) { choose(ids); showList(listed); }
});
connect();

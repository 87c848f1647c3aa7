import { chart } from "./charts.js";
import { get, merge, throttled } from "./live.js";

const PAUSE = 1_000; // milliseconds between two looks
const POLL = 15_000; // and where nothing is told as it happens
const LIST = 5_000;
const LESSONS = 30_000;
const AT_ONCE = 100;
const WER = "dev/wer";
const SPREAD = "spread/time";

document.documentElement.classList.add("script");
const root = document.getElementById("sweep");
if (root) sweepPage();
else listPage();

function notice(text) {
  const box = document.getElementById("notice");
  if (!box) return;
  box.textContent = text;
  box.hidden = !text;
}

// The list of sweeps

function listPage() {
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const page = await get("/");
      const there = new Set([...page.querySelectorAll("#sweeps tr")].map((row) => row.id));
      merge(page);
      if (document.querySelector("#sweeps tr")) document.querySelector("table.list").hidden = false;
      for (const row of document.querySelectorAll("#sweeps tr")) if (!there.has(row.id)) row.remove();
    } catch {
      return; // the server is away: the next look tries again
    }
  }, LIST);
}

// One sweep

function sweepPage() {
  const path = `/sweeps/${encodeURIComponent(root.dataset.name)}`;
  const api = `/v1${path}`;
  const floor = Number(root.dataset.floor);
  const axes = JSON.parse(root.dataset.axes);
  const bounds = JSON.parse(root.dataset.bounds);
  const trials = new Map(); // by number: what its row says
  const curves = new Map(); // by number: { epochs, wer, spread }
  const body = document.getElementById("trials");

  // The table is what the pictures are drawn from.

  function read(row) {
    const data = row.dataset;
    const number = Number(data.number);
    trials.set(number, {
      number,
      row,
      label: data.label,
      state: data.state,
      outcome: data.outcome,
      epochs: Number(data.epochs),
      wer: data.wer === undefined ? null : Number(data.wer),
      values: JSON.parse(data.values),
    });
  }
  const byWer = () => [...trials.values()].sort((a, b) => (a.wer ?? 9) - (b.wer ?? 9) || a.number - b.number);
  let ranked = [];

  // Pictures

  const percent = (value) => `${Math.round(100 * value)}%`;
  const short = (value) => {
    const rounded = Number(Number(value).toPrecision(3));
    return rounded && Math.abs(rounded) < 1e-3 ? rounded.toExponential() : String(rounded);
  };
  function tell(number, x, y, what) {
    const trial = trials.get(number);
    const cells = trial.row.cells;
    const verdict = cells[3].textContent.trim();
    const best = trial.wer === null ? "" : `, best WER ${(100 * trial.wer).toFixed(1)}%`;
    const here = what && x !== undefined && y !== null ? `; epoch ${x}: ${what(y)}` : "";
    const why = cells[cells.length - 1].textContent.trim();
    return [`Trial ${trial.label}: ${trial.state.toLowerCase()}${verdict ? `, ${verdict}` : ""}`, `${best.slice(2)}${here}${best || here ? ". " : ""}${why}`];
  }
  function choose(number, scroll) {
    for (const each of pictures) each.show(number);
    body.querySelector(".chosen")?.classList.remove("chosen");
    const row = trials.get(number)?.row;
    row?.classList.add("chosen");
    if (!scroll) return;
    row?.classList.add("open");
    row?.scrollIntoView({ block: "center" });
  }
  const shared = { order: () => ranked.filter((trial) => trial.wer !== null).map((trial) => trial.number), choose, none: "no trial with a WER yet" };
  let lastEpoch = 1;
  let mostSpread = 0.1;
  const epochs = { label: "epoch", format: String, limits: () => [lastEpoch > 1 ? 1 : 0, Math.max(lastEpoch, 2)], whole: true };
  const wers = { format: percent, limits: () => [0, 1.1] };
  const rates = () => ranked.map((trial) => trial.values.learning_rate).filter((rate) => rate > 0);
  const scales = [];
  const wer = chart(document.getElementById("chart-wer"), {
    ...shared, none: "no epoch yet", x: epochs, y: { ...wers, label: "dev WER" }, line: floor,
    tell: (number, x, y) => tell(number, x, y, (value) => `${(100 * value).toFixed(1)}%`),
  });
  const spread = chart(document.getElementById("chart-spread"), {
    ...shared, none: "no epoch yet", x: epochs, y: { label: "spread over time (nats)", format: short, limits: () => [0, 1.05 * mostSpread] },
    tell: (number, x, y) => tell(number, x, y, (value) => `${short(value)} nats`),
  });
  const scatter = chart(document.getElementById("chart-rates"), {
    ...shared,
    x: {
      label: "learning rate", log: true, space: 30,
      format: (value) => ([1, 2, 5].includes(Number(value.toExponential().split("e")[0])) ? value.toExponential().replace("+", "") : ""),
      limits: () => [Math.min(bounds.low, ...rates()) / 1.15, Math.max(bounds.high, ...rates()) * 1.15],
    },
    y: { ...wers, label: "best dev WER" }, line: floor, band: () => [bounds.low, bounds.high],
    tell: (number) => tell(number),
  });
  const parallel = chart(document.getElementById("chart-parallel"), {
    ...shared,
    x: {
      format: (value) => ([...axes.map((axis) => axis.short), "best WER"][value] ?? ""),
      limits: () => [-0.35, axes.length + 0.35], ticks: () => [...axes.keys(), axes.length], space: 20,
    },
    y: { format: () => "", limits: () => [-0.08, 1.08], size: 8, bare: true },
    under(ctx, px, py, colours) {
      ctx.font = "11px system-ui, sans-serif";
      ctx.textAlign = "center";
      for (const [x, scale] of scales.entries()) {
        ctx.strokeStyle = colours.soft;
        ctx.lineWidth = 1;
        ctx.beginPath();
        ctx.moveTo(px(x), py(0));
        ctx.lineTo(px(x), py(1));
        ctx.stroke();
        ctx.fillStyle = colours.soft;
        for (const [y, text] of scale.labels) ctx.fillText(text, px(x), py(y) + (y === 1 ? -4 : y === 0 ? 12 : 4));
      }
    },
    tell: (number) => tell(number),
  });
  const pictures = [wer, spread, scatter, parallel];

  function lookOf(trial) {
    if (trial === ranked[0] && trial.wer !== null) return "best";
    return trial.state === "PRUNED" || trial.state === "FAILED" ? "stopped" : "other";
  }
  const RANK = { stopped: 0, other: 1, best: 2 };

  function draw() {
    ranked = byWer();
    const lines = ranked.map((trial) => ({ trial, number: trial.number, look: lookOf(trial) }));
    lines.sort((a, b) => RANK[a.look] - RANK[b.look]);
    const drawn = lines.filter((line) => curves.has(line.number));
    lastEpoch = Math.max(1, ...drawn.map((line) => curves.get(line.number).epochs.at(-1) ?? 1));
    mostSpread = 0.1;
    for (const line of drawn) for (const value of curves.get(line.number).spread) if (value > mostSpread) mostSpread = value;
    wer.draw(drawn.map((line) => ({ ...line, xs: curves.get(line.number).epochs, ys: curves.get(line.number).wer })));
    spread.draw(drawn.map((line) => ({ ...line, xs: curves.get(line.number).epochs, ys: curves.get(line.number).spread })));
    const scored = lines.filter((line) => line.trial.wer !== null && line.trial.values.learning_rate > 0);
    scatter.draw(scored.map((line) => ({ number: line.number, look: line.trial.outcome, xs: [line.trial.values.learning_rate], ys: [line.trial.wer] })));
    drawParallel(scored);
  }

  // Of one value of each trial: where it lies, from 0 to 1, or undefined where a trial has none; and what stands there.
  function ranged(lines, of, byLog, format) {
    const values = lines.map((line) => of(line.trial)).filter((value) => value !== undefined).map(Number);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const scaled = (value) => (byLog && low > 0 ? Math.log(value) : value);
    const span = scaled(high) - scaled(low);
    const place = (value) => (span ? (scaled(Number(value)) - scaled(low)) / span : 0.5);
    const labels = !values.length ? [] : span ? [[0, format(low)], [1, format(high)]] : [[0.5, format(low)]];
    return { labels, place: (trial) => (of(trial) === undefined ? undefined : place(of(trial))) };
  }
  function listed(axis, lines) {
    const of = (trial) => trial.values[axis.name];
    const known = [...new Set([...axis.choices, ...lines.map((line) => of(line.trial)).filter((value) => value !== undefined)])];
    const place = (value) => known.indexOf(value) / (known.length - 1);
    return { labels: known.map((value) => [place(value), String(value)]), place: (trial) => (of(trial) === undefined ? undefined : place(of(trial))) };
  }
  function across(trial) {
    const points = [...scales.entries()].map(([x, scale]) => [x, scale.place(trial)]).filter(([, y]) => y !== undefined);
    return { xs: points.map(([x]) => x), ys: points.map(([, y]) => y) };
  }

  function drawParallel(lines) {
    scales.length = 0;
    if (!lines.length) {
      parallel.draw([]);
      return;
    }
    for (const axis of axes) scales.push(axis.choices ? listed(axis, lines) : ranged(lines, (trial) => trial.values[axis.name], axis.log, short));
    scales.push(ranged(lines, (trial) => trial.wer, false, percent));
    const third = new Set(lines.map((line) => line.trial).sort((a, b) => a.wer - b.wer).slice(0, Math.ceil(lines.length / 3)));
    const items = lines.map((line) => ({
      number: line.number,
      look: line.look === "best" ? "best" : third.has(line.trial) ? "other" : "stopped",
      ...across(line.trial),
    }));
    parallel.draw(items.sort((a, b) => RANK[a.look] - RANK[b.look]));
  }

  // What is new: the head, rows that changed, and of the curves the epochs behind those that are known.

  const changedTrials = new Set();
  let lastEvent = Number(root.dataset.lastEvent);

  function add(found) {
    for (const [number, curve] of Object.entries(found)) {
      const known = curves.get(Number(number)) ?? { epochs: [], wer: [], spread: [] };
      const last = known.epochs.at(-1) ?? 0;
      curve.epochs.forEach((epoch, i) => {
        if (epoch <= last) return;
        known.epochs.push(epoch);
        known.wer.push(curve.metrics[WER][i]);
        known.spread.push(curve.metrics[SPREAD][i]);
      });
      curves.set(Number(number), known);
    }
  }
  async function json(address) {
    const answer = await fetch(address);
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.detail);
    return said;
  }
  const METRICS = `metric=${encodeURIComponent(WER)}&metric=${encodeURIComponent(SPREAD)}`;

  async function fetchCurves() {
    const behind = [...trials.values()].filter((trial) => trial.epochs > (curves.get(trial.number)?.epochs.at(-1) ?? 0));
    for (let i = 0; i < behind.length; i += AT_ONCE) {
      const known = behind.slice(i, i + AT_ONCE).map((trial) => `beyond=${trial.number}:${curves.get(trial.number)?.epochs.at(-1) ?? 0}`);
      add(await json(`${api}/curves?${METRICS}&${known.join("&")}`));
    }
    return behind.length;
  }

  const refresh = throttled(async () => {
    const numbers = [...changedTrials].slice(0, AT_ONCE);
    for (const number of numbers) changedTrials.delete(number);
    try {
      const page = await get(`${path}/changes?after=${lastEvent}${numbers.map((number) => `&trial=${number}`).join("")}`);
      const newest = page.querySelector("#events li");
      if (newest) lastEvent = Number(newest.id.slice("event-".length));
      const changed = merge(page);
      const rows = changed.filter((part) => part.matches("#trials > tr"));
      rows.forEach(read);
      ready();
      if (changed.some((part) => part.matches("#decisions > *"))) document.getElementById("no-decision")?.remove();
      if (rows.length) sort();
      if ((await fetchCurves()) || rows.length) draw();
      if (rows.some((row) => !["RUNNING", "WAITING"].includes(row.dataset.state))) lessons();
      notice("");
    } catch (error) {
      for (const number of numbers) changedTrials.add(number);
      notice(`Not up to date: ${error.message}`);
      setTimeout(refresh, POLL); // or as soon as the live connection is back
      return;
    }
    if (changedTrials.size) refresh();
  }, PAUSE);

  let source;
  function listen() {
    if (source && source.readyState !== EventSource.CLOSED) return;
    source = new EventSource(`${api}/live?after=${lastEvent}`);
    source.addEventListener("trial", (event) => {
      changedTrials.add(JSON.parse(event.data).data.number);
      refresh();
    });
    source.addEventListener("event", () => refresh());
    source.addEventListener("status", () => refresh());
    source.addEventListener("over", () => {
      source.close();
      refresh();
    });
    source.addEventListener("gone", () => {
      source.close();
      clearInterval(polling);
      notice("This sweep was deleted.");
    });
  }
  const OVER = ".complete, .stopped, .cancelled, .failed, .deleting";
  const polling = setInterval(() => {
    if (document.hidden || source.readyState !== EventSource.CLOSED) return;
    if (document.querySelector(`#state .badge:is(${OVER})`)) refresh();
    else listen(); // it went on, or the connection was refused
  }, POLL);

  const lessons = throttled(async () => {
    try {
      const page = await get(`${path}/learned`);
      document.getElementById("learned").replaceWith(page.getElementById("learned"));
    } catch {
      return; // the link to them stays, or what was there before
    }
  }, LESSONS);

  // Buttons

  document.addEventListener("submit", async (event) => {
    const form = event.target.closest("[data-verb]");
    if (!form) return;
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    try {
      const answer = await fetch(`${api}/${form.dataset.verb}`, { method: "POST" });
      if (!answer.ok) throw new Error((await answer.json()).detail);
      await refresh();
      listen();
    } catch (error) {
      notice(error.message);
    }
    button.disabled = false;
  });
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const said = button.firstChild;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      said.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling); // without TLS a page may not copy
      said.textContent = "Marked: copy it";
    }
    setTimeout(() => (said.textContent = "Copy"), 2_000);
  });
  function ready() {
    for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
  }

  // Sorting and filtering

  const heads = [...document.querySelectorAll("table.trials thead th")];
  let by = { column: 0, up: true };
  for (const [column, head] of heads.entries()) {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      by = { column, up: by.column === column ? !by.up : true };
      sort();
    });
    head.replaceChildren(button);
  }
  function sort() {
    for (const [column, head] of heads.entries()) {
      if (column === by.column) head.setAttribute("aria-sort", by.up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    }
    const sign = by.up ? 1 : -1;
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[by.column];
      const text = cell.dataset.v ?? cell.textContent.trim();
      return { row, text, value: text === "" ? NaN : Number(text), number: Number(row.dataset.number) };
    });
    rows.sort((a, b) => {
      if ((a.text === "") !== (b.text === "")) return a.text === "" ? 1 : -1; // what has none comes last
      const both = !Number.isNaN(a.value) && !Number.isNaN(b.value);
      return sign * (both ? a.value - b.value : a.text.localeCompare(b.text)) || a.number - b.number;
    });
    if (rows.some(({ row }, i) => body.rows[i] !== row)) body.append(...rows.map(({ row }) => row));
    filter();
  }
  const chosen = document.getElementById("filter");
  function filter() {
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = chosen.value !== "" && !row.matches(chosen.value);
      shown += !row.hidden;
    }
    document.getElementById("filtered").textContent = chosen.value ? `${shown} of ${body.rows.length}` : "";
  }
  chosen.addEventListener("change", filter);
  body.addEventListener("pointerover", (event) => {
    const row = event.target.closest("tr");
    if (row) choose(Number(row.dataset.number));
  });
  body.addEventListener("pointerleave", () => choose(undefined));
  body.addEventListener("click", (event) => {
    if (!event.target.closest("a") && getSelection().isCollapsed) event.target.closest("tr")?.classList.toggle("open");
  });

  async function begin() {
    for (const each of document.querySelectorAll(".script[hidden]")) each.hidden = false;
    ready();
    for (const row of body.rows) read(row);
    draw();
    performance.mark("usable"); // all but the curves, which are on their way
    if (trials.size) {
      try {
        add(await json(root.dataset.curves));
      } catch (error) {
        notice(`The curves cannot be had: ${error.message}`);
      }
      draw();
    }
    document.documentElement.dataset.ready = "";
    listen();
    lessons();
  }
  begin();
}

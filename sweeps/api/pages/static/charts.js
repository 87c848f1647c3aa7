// Charts of many trials on uPlot's axes: lines or dots that can be pointed at, and gone through with the keyboard.
//
// uPlot has the scales, the axes, zooming and the resolution of the screen. The trials are drawn by ourselves, a path a
// group: a series of uPlot's for each of a thousand trials would be a path, a style and an event a trial.

const REACH = 24; // pixels from a line or dot within which it is pointed at
const colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "soft", "line", "band", "one", "two", "quiet", "paper"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

readColours();
const charts = [];
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readColours();
  charts.forEach((chart) => chart.redraw());
});

const LOOKS = {
  best: { colour: "two", width: 2.2, alpha: 1 },
  other: { colour: "one", width: 1.2, alpha: 0.75 },
  stopped: { colour: "quiet", width: 1, alpha: 0.55 },
  "took off": { colour: "one", shape: "dot", alpha: 0.9 },
  "did not take off": { colour: "two", shape: "cross", alpha: 0.9 },
  diverged: { colour: "two", shape: "triangle", alpha: 0.9 },
  "stopped before": { colour: "quiet", shape: "square", alpha: 0.8 },
  "not yet": { colour: "quiet", shape: "ring", alpha: 1 },
};

// How thin so many are drawn, so that they do not run into one: 1 up to 50, 0.4 from 300 on.
const fineness = (number) => Math.max(0.4, Math.min(1, Math.sqrt(50 / Math.max(number, 1))));

/**
 * A chart in `box`. Its `plan`:
 *   x, y: { label, format(value), log, bare (no grid), limits() -> [low, high], ticks() -> values or undefined }
 *   none: what is said where there is no trial
 *   line: a value of y that is drawn across, or undefined
 *   band(): [low, high] of x that is shaded, or undefined
 *   tell(number, x): what is said of a trial, as [head, text]
 *   order(): the numbers of the trials as the keyboard goes through them
 *   choose(number): a trial was pointed at, or none (undefined)
 * `draw(items)` takes { number, look, xs, ys }, the last ones on top; `show(number)` lifts one out.
 */
export function chart(box, plan) {
  let items = [];
  let byNumber = new Map();
  let shown;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  const over = document.createElement("canvas");
  over.className = "over";

  const axis = (of, side, size) => ({
    scale: of === plan.x ? "x" : "y",
    side,
    size,
    stroke: () => colours.soft,
    grid: { stroke: () => (of.log || of.ticks || of.bare ? "#0000" : colours.line), width: 0.5 },
    ticks: { stroke: () => (of.bare ? "#0000" : colours.line), width: 1, size: 4 },
    font: "12px system-ui, sans-serif",
    label: of.label,
    labelFont: "12px system-ui, sans-serif",
    labelSize: of.label ? 18 : 0,
    values: (_, splits) => splits.map((value) => (value === null ? "" : of.format(value))),
    ...(of.ticks ? { splits: () => of.ticks() } : {}),
    ...(of.space ? { space: of.space } : {}),
    ...(of.whole ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] } : {}),
  });

  let zoomed = false;
  const plot = new uPlot(
    {
      width: box.clientWidth || 300,
      height: box.clientHeight || 240,
      legend: { show: false },
      cursor: { points: { show: false }, drag: { x: !plan.x.ticks, y: false, uni: 20 } },
      scales: {
        x: {
          time: false,
          distr: plan.x.log ? 3 : 1,
          range: (_, low, high) => (zoomed ? [low, high] : plan.x.limits()),
        },
        y: { range: () => plan.y.limits() },
      },
      axes: [axis(plan.x, 2, 34), axis(plan.y, 3, plan.y.size ?? 48)],
      series: [{}, { paths: () => null, points: { show: false } }],
      hooks: { drawClear: [shade], draw: [paint], setSelect: [() => (zoomed = true)] },
    },
    [[], []],
    box,
  );
  plot.over.append(over);
  box.append(tip);
  plot.over.addEventListener("dblclick", () => {
    zoomed = false;
    plot.setData(extent());
  });

  const px = (x) => plot.valToPos(x, "x");
  const py = (y) => plot.valToPos(y, "y");
  const clipped = (y) => Math.min(y, plan.y.limits()[1]);

  function extent() {
    return [plan.x.limits(), plan.y.limits()];
  }

  function shade() {
    const band = plan.band?.();
    if (!band) return;
    const { ctx, bbox } = plot;
    const [left, right] = band.map((x) => Math.max(bbox.left, Math.min(bbox.left + bbox.width, plot.valToPos(x, "x", true))));
    ctx.fillStyle = colours.band;
    ctx.fillRect(left, bbox.top, right - left, bbox.height);
  }

  function paint() {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top - 4 * ratio, bbox.width, bbox.height + 8 * ratio);
    ctx.clip();
    ctx.translate(bbox.left, bbox.top);
    ctx.scale(ratio, ratio);
    if (plan.line !== undefined) {
      ctx.setLineDash([5, 4]);
      ctx.strokeStyle = colours.soft;
      ctx.lineWidth = 1;
      ctx.beginPath();
      ctx.moveTo(0, py(plan.line));
      ctx.lineTo(bbox.width / ratio, py(plan.line));
      ctx.stroke();
      ctx.setLineDash([]);
    }
    plan.under?.(ctx, px, py, colours);
    const groups = Map.groupBy ? Map.groupBy(items, (item) => item.look) : grouped(items);
    for (const [name, group] of groups) {
      const look = LOOKS[name];
      ctx.globalAlpha = look.alpha;
      ctx.strokeStyle = ctx.fillStyle = colours[look.colour];
      ctx.lineWidth = look.shape ? 1.6 : look.width * fineness(group.length);
      ctx.beginPath();
      for (const item of group) {
        place(item);
        trace(ctx, item, look, look.shape === undefined && item.px.length === 1 ? 2 : 4 * Math.sqrt(fineness(items.length)));
      }
      ctx.stroke();
      if (look.shape && look.shape !== "cross" && look.shape !== "ring") ctx.fill();
    }
    if (!items.length) {
      ctx.fillStyle = colours.soft;
      ctx.font = "13px system-ui, sans-serif";
      ctx.textAlign = "center";
      ctx.fillText(plan.none, bbox.width / ratio / 2, bbox.height / ratio / 2);
    }
    ctx.restore();
    lift();
  }

  function place(item) {
    item.px = item.xs.map(px);
    item.py = item.ys.map((y) => (y === null ? null : py(clipped(y))));
  }

  function lift() {
    const { width, height } = plot.over.getBoundingClientRect();
    const ratio = devicePixelRatio;
    over.width = width * ratio;
    over.height = height * ratio;
    over.style.width = `${width}px`;
    over.style.height = `${height}px`;
    const item = byNumber.get(shown);
    if (!item?.px) return;
    const ctx = over.getContext("2d");
    ctx.scale(ratio, ratio);
    const look = LOOKS[item.look];
    for (const [colour, lineWidth] of [["paper", 6], ["ink", 2.4]]) {
      ctx.strokeStyle = colours[colour];
      ctx.lineWidth = look.shape ? lineWidth / 1.4 : lineWidth;
      ctx.beginPath();
      trace(ctx, item, look.shape ? { shape: "ring" } : look, look.shape ? 7 : 3);
      ctx.stroke();
    }
  }

  // The trial nearest to a place, and which of its points; undefined where none is near.
  function at(x, y) {
    let best;
    let least = REACH ** 2;
    for (const item of items) {
      if (!item.px) continue;
      for (let i = 0; i < item.px.length; i++) {
        if (item.py[i] === null) continue;
        const joined = i > 0 && item.py[i - 1] !== null && !LOOKS[item.look].shape;
        const distance = joined
          ? toSegment(x, y, item.px[i - 1], item.py[i - 1], item.px[i], item.py[i])
          : (x - item.px[i]) ** 2 + (y - item.py[i]) ** 2;
        if (distance <= least) {
          least = distance;
          const before = joined && Math.abs(x - item.px[i - 1]) < Math.abs(x - item.px[i]);
          best = { number: item.number, i: before ? i - 1 : i };
        }
      }
    }
    return best;
  }

  function say(number, i) {
    const item = byNumber.get(number);
    tip.hidden = !item?.px?.length;
    if (tip.hidden) return;
    const at = i ?? item.py.findLastIndex((y) => y !== null);
    const [head, text] = plan.tell(number, item.xs[at], item.ys[at]);
    const b = document.createElement("b");
    b.textContent = head;
    const p = document.createElement("p");
    p.textContent = text;
    tip.replaceChildren(b, p);
    const frame = plot.over.getBoundingClientRect();
    const outer = box.getBoundingClientRect();
    const x = frame.left - outer.left + (item.px[at] ?? 0);
    const y = frame.top - outer.top + (item.py[at] ?? 0);
    const room = outer.width - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, x + (x > outer.width / 2 ? -tip.offsetWidth - 14 : 14)))}px`;
    tip.style.top = `${y + tip.offsetHeight + 14 > outer.height ? Math.max(-8, y - tip.offsetHeight - 14) : y + 14}px`;
  }

  // A pointer

  let waiting = false;
  plot.over.addEventListener("pointermove", (event) => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const frame = plot.over.getBoundingClientRect();
      const found = at(event.clientX - frame.left, event.clientY - frame.top);
      plan.choose(found?.number);
      if (found) say(found.number, found.i);
      else tip.hidden = true;
    });
  });
  plot.over.addEventListener("pointerleave", () => {
    if (document.activeElement === box) return;
    tip.hidden = true;
    plan.choose(undefined);
  });
  plot.over.addEventListener("click", (event) => {
    const frame = plot.over.getBoundingClientRect();
    const found = at(event.clientX - frame.left, event.clientY - frame.top);
    if (found) plan.choose(found.number, true);
  });

  // The keyboard: a slider over the trials, so that a screen reader says the one it has come to.

  box.tabIndex = 0;
  box.setAttribute("role", "slider");
  box.setAttribute("aria-valuemin", "1");
  function come(step) {
    const order = plan.order().filter((number) => byNumber.has(number));
    if (!order.length) return;
    const now = order.indexOf(shown);
    const next = step === "first" ? 0 : step === "last" ? order.length - 1 : now < 0 ? 0 : now + step;
    const place = Math.max(0, Math.min(order.length - 1, next));
    plan.choose(order[place]);
    say(order[place]);
    announce(order, place);
  }
  function announce(order, place) {
    box.setAttribute("aria-valuemax", String(Math.max(order.length, 1)));
    box.setAttribute("aria-valuenow", String(place + 1));
    box.setAttribute("aria-valuetext", order.length ? plan.tell(order[place]).join(". ") : "no trial yet");
  }
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: "first", End: "last" }[event.key];
    if (event.key === "Enter" && shown !== undefined) plan.choose(shown, true);
    if (event.key === "Escape") {
      tip.hidden = true;
      plan.choose(undefined);
    }
    if (step === undefined) return;
    event.preventDefault();
    come(step);
  });
  box.addEventListener("focus", () => box.matches(":focus-visible") && come(0));
  box.addEventListener("blur", () => {
    tip.hidden = true;
    plan.choose(undefined);
  });

  new ResizeObserver(() => {
    if (box.clientWidth) plot.setSize({ width: box.clientWidth, height: box.clientHeight });
  }).observe(box);

  const made = {
    draw(drawn) {
      items = drawn;
      byNumber = new Map(items.map((item) => [item.number, item]));
      box.setAttribute("aria-label", `${box.dataset.label}: ${items.length} trials, the best first`);
      const order = plan.order().filter((number) => byNumber.has(number));
      announce(order, Math.max(0, order.indexOf(shown)));
      if (zoomed) plot.redraw(false);
      else plot.setData(extent());
    },
    show(number) {
      shown = number;
      lift();
    },
    redraw: () => plot.redraw(false, true),
  };
  charts.push(made);
  return made;
}

function grouped(items) {
  const found = new Map();
  for (const item of items) found.set(item.look, [...(found.get(item.look) ?? []), item]);
  return found;
}

function trace(ctx, item, look, size) {
  if (look.shape) {
    mark(ctx, look.shape, item.px[0], item.py[0], size);
    return;
  }
  let drawing = false;
  for (let i = 0; i < item.px.length; i++) {
    if (item.py[i] === null) drawing = false;
    else if (drawing) ctx.lineTo(item.px[i], item.py[i]);
    else {
      ctx.moveTo(item.px[i], item.py[i]);
      drawing = true;
      // One epoch alone is seen as well.
      if (item.py[i + 1] === undefined || item.py[i + 1] === null) mark(ctx, "ring", item.px[i], item.py[i], 1.5);
    }
  }
}

function mark(ctx, shape, x, y, size) {
  if (shape === "cross") {
    for (const slope of [1, -1]) {
      ctx.moveTo(x - size, y - slope * size);
      ctx.lineTo(x + size, y + slope * size);
    }
  } else if (shape === "square") {
    ctx.rect(x - size + 1, y - size + 1, 2 * size - 2, 2 * size - 2);
  } else if (shape === "triangle") {
    ctx.moveTo(x, y - size);
    ctx.lineTo(x + size, y + size);
    ctx.lineTo(x - size, y + size);
    ctx.closePath();
  } else {
    ctx.moveTo(x + size, y);
    ctx.arc(x, y, size, 0, 2 * Math.PI);
  }
}

// The squared distance of a place from a segment.
function toSegment(x, y, ax, ay, bx, by) {
  const dx = bx - ax;
  const dy = by - ay;
  const length = dx * dx + dy * dy;
  const along = length ? Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
  return (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2;
}

"use strict";
// Reads curves and maps out under the pointer or the arrow keys, and turns tabs. Without it, the page
// is complete but for the first of several runs.

const limit = (x, low, high) => Math.min(high, Math.max(low, x));
const hidden = new Set(); // runs that the legend switched off

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function number(x) {
  if (x === null) return "not finite";
  if (x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6)) return x.toExponential(2);
  return Number(x.toPrecision(4)).toLocaleString("en");
}

function place(tip, share, box) {
  tip.hidden = false;
  const left = share * box.offsetWidth, room = box.offsetWidth;
  const width = tip.offsetWidth;
  const right = left + 12 + width <= room + 16 || left < room / 2;
  tip.style.left = `${limit(right ? left + 12 : left - 12 - width, -50, Math.max(-50, room - width + 16))}px`;
}

function curve(figure) {
  const plot = figure.querySelector(".plot");
  const source = figure.querySelector("script[type='application/json']");
  if (!plot || !source) return;
  const { x, lines } = JSON.parse(source.textContent);
  const cursor = plot.querySelector(".cursor"), tip = plot.querySelector(".tip");
  const steps = [...new Set(lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  let at = steps.length - 1;

  function nearest(points, step) {
    return points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
  }

  function show(index) {
    at = limit(index, 0, steps.length - 1);
    const step = steps[at];
    const share = x[1] > x[0] ? (step - x[0]) / (x[1] - x[0]) : 0.5;
    const found = lines
      .filter((line) => !hidden.has(line.run))
      .map((line) => ({ ...line, point: nearest(line.points, step) }))
      .sort((a, b) => (b.point[1] ?? -Infinity) - (a.point[1] ?? -Infinity));
    tip.replaceChildren(element("div", `step ${step.toLocaleString("en")}`, "step"));
    for (const line of found) {
      const entry = element("div", undefined, "entry");
      if (lines.length > 1) {
        entry.append(element("i", undefined, `swatch c${line.run % 10}`), element("span", line.name));
      }
      entry.append(element("b", number(line.point[1])));
      tip.append(entry);
    }
    cursor.hidden = false;
    cursor.style.left = `${100 * share}%`;
    place(tip, share, plot);
  }

  function hide() {
    cursor.hidden = tip.hidden = true;
  }

  function follow(event) {
    const box = plot.getBoundingClientRect();
    const step = x[0] + limit((event.clientX - box.left) / box.width, 0, 1) * (x[1] - x[0]);
    show(steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? i : best), 0));
  }

  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (move !== undefined) {
      event.preventDefault();
      show(tip.hidden ? (move < 0 ? steps.length - 1 : 0) : at + move);
    } else if (event.key === "Escape") hide();
  });
}

function plane(box) {
  const svg = box.querySelector("svg"), dots = [...svg.querySelectorAll("circle")];
  const { names, labels, columns, rows } = JSON.parse(box.querySelector("script").textContent);
  const tip = box.querySelector(".tip"), image = tip.querySelector("img"), words = tip.querySelector(".name");
  const spots = dots.map((dot) => [dot.cx.baseVal.value, dot.cy.baseVal.value]);
  let at = 0;
  image.style.width = `${100 * columns}%`;
  image.style.height = `${100 * rows}%`;

  function show(index) {
    at = limit(index, 0, dots.length - 1);
    for (const dot of svg.querySelectorAll(".on")) dot.classList.remove("on");
    dots[at].classList.add("on");
    image.style.left = `${-100 * (at % columns)}%`;
    image.style.top = `${-100 * Math.floor(at / columns)}%`;
    words.replaceChildren(element("div", labels ? labels[at] : ""), element("div", names[at], "muted"));
    place(tip, spots[at][0] / 1000, svg.parentElement);
    const top = (spots[at][1] / 1000) * svg.getBoundingClientRect().height;
    tip.style.top = `${Math.max(0, top - tip.offsetHeight - 12)}px`;
  }

  function hide() {
    tip.hidden = true;
    for (const dot of svg.querySelectorAll(".on")) dot.classList.remove("on");
  }

  function follow(event) {
    const area = svg.getBoundingClientRect();
    const x = (1000 * (event.clientX - area.left)) / area.width, y = (1000 * (event.clientY - area.top)) / area.height;
    let best = -1, least = 45 ** 2;
    spots.forEach(([cx, cy], i) => {
      const distance = (cx - x) ** 2 + (cy - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    if (best < 0) hide();
    else show(best);
  }

  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move !== undefined) {
      event.preventDefault();
      show(tip.hidden ? at : at + move);
    } else if (event.key === "Escape") hide();
  });
}

function tabs(list) {
  const all = [...list.querySelectorAll("[role=tab]")];
  function choose(tab) {
    for (const other of all) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", chosen);
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    }
  }
  all.forEach((tab, i) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = all[(to + all.length) % all.length];
      choose(next);
      next.focus();
    });
  });
}

document.querySelectorAll(".chart").forEach(curve);
document.querySelectorAll(".plane").forEach(plane);
document.querySelectorAll("[role=tablist]").forEach(tabs);
document.querySelectorAll(".legend button").forEach((button) => {
  button.addEventListener("click", () => {
    const run = Number(button.dataset.run), off = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", !off);
    if (off) hidden.add(run);
    else hidden.delete(run);
    document.querySelectorAll(`.plot path[data-run="${run}"]`).forEach((path) => path.classList.toggle("off", off));
  });
});

// What the report does beyond showing: filters, a map to zoom into, lists to copy. All of it can be
// missing; the page then says the same.
"use strict";

const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// A link to a pick, from the map or from outside, opens it.
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const details = target && target.querySelector("details");
  if (details) details.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();

for (const form of all("form.filters")) {
  const tiles = all(`li[data-of="${form.dataset.of}"]`);
  const marks = all(`.plot[data-of="${form.dataset.of}"] a`);
  const apply = () => {
    const want = Object.fromEntries(new FormData(form));
    const shown = new Set();
    for (const tile of tiles) {
      const { number, cluster, label } = tile.dataset;
      const fits = (!want.label || want.label === label)
        && (!want.cluster || Number(want.cluster) === Number(cluster))
        && (!want.low || Number(number) >= Number(want.low))
        && (!want.high || Number(number) <= Number(want.high));
      tile.hidden = !fits;
      if (fits) shown.add(number);
    }
    for (const mark of marks) mark.classList.toggle("off", !shown.has(mark.dataset.number));
    form.querySelector("[role=status]").textContent = `${shown.size} of ${tiles.length} picks`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  // The fields are empty only after the event.
  form.addEventListener("reset", () => setTimeout(apply));
  apply();
}

for (const plot of all(".plot")) {
  const svg = plot.querySelector("svg");
  const whole = svg.viewBox.baseVal.width;
  const aspect = svg.viewBox.baseVal.height / whole;
  const sizes = all("circle", svg).map((c) => [c, "r", Number(c.getAttribute("r"))])
    .concat(all("text", svg).map((t) => [t, "font-size", Number(t.getAttribute("font-size"))]));
  let view = { x: 0, y: 0, width: whole };
  const show = () => {
    view.width = Math.min(whole, Math.max(whole / 40, view.width));
    view.x = Math.min(whole - view.width, Math.max(0, view.x));
    view.y = Math.min((whole - view.width) * aspect, Math.max(0, view.y));
    svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.width * aspect}`);
    // Picks stay as large as they are, so that zooming in parts them.
    for (const [mark, name, size] of sizes) mark.setAttribute(name, size * view.width / whole);
    for (const path of all("path", svg)) path.style.strokeWidth = 5 * Math.sqrt(view.width / whole);
  };
  const zoom = (factor, x = 0.5, y = 0.5) => {
    const width = factor ? view.width / factor : whole;
    view.x += x * (view.width - width);
    view.y += y * (view.width - width) * aspect;
    view.width = width;
    show();
  };
  const buttons = plot.querySelector(".zoom");
  buttons.hidden = false;
  buttons.addEventListener("click", (event) => {
    const way = event.target.dataset.zoom;
    if (way) zoom({ in: 1.5, out: 1 / 1.5, whole: 0 }[way]);
  });
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  svg.addEventListener("wheel", (event) => {
    // Without a key the page scrolls; a pinch on a touchpad comes with ctrlKey.
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, ...place(event));
  }, { passive: false });
  svg.addEventListener("dblclick", (event) => zoom(2, ...place(event)));
  let from = null;
  svg.addEventListener("pointerdown", (event) => { from = place(event); });
  addEventListener("pointerup", () => { from = null; });
  svg.addEventListener("pointermove", (event) => {
    if (!from || view.width === whole) return;
    const to = place(event);
    view.x += (from[0] - to[0]) * view.width;
    view.y += (from[1] - to[1]) * view.width * aspect;
    from = to;
    show();
  });
  const peek = plot.querySelector(".peek");
  for (const mark of all("a", svg)) {
    mark.addEventListener("mouseenter", (event) => {
      const tile = document.getElementById(`pick-${plot.dataset.of}-${mark.dataset.number}`);
      const picture = tile && tile.querySelector("img");
      if (!picture) return;
      const copy = document.createElement("img");
      copy.src = picture.src;
      copy.alt = "";
      peek.replaceChildren(copy, `${mark.dataset.number}: ${picture.alt}`);
      peek.hidden = false;
      const [x, y] = place(event);
      peek.style.left = x < 0.5 ? `${100 * x + 2}%` : "auto";
      peek.style.right = x < 0.5 ? "auto" : `${102 - 100 * x}%`;
      peek.style.top = y < 0.5 ? `${100 * y}%` : "auto";
      peek.style.bottom = y < 0.5 ? "auto" : `${100 - 100 * y}%`;
    });
    mark.addEventListener("mouseleave", () => { peek.hidden = true; });
  }
}

for (const bar of all(".copy")) {
  const within = bar.parentElement;
  bar.hidden = false;
  bar.addEventListener("click", async (event) => {
    if (event.target.tagName !== "BUTTON") return;
    const list = [...within.children].slice([...within.children].indexOf(bar));
    const holder = event.target.dataset.what === "files"
      ? list.map((e) => e.querySelector("pre.files")).find(Boolean)
      : list.find((e) => e.matches("pre.indices"));
    const text = holder.textContent;
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages opened from a disk may not be allowed to.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    bar.querySelector("[role=status]").textContent = done ? "copied" : "not copied; mark the list below";
  });
}
